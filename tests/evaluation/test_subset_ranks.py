"""Ranks among a query's candidates and in a whole catalogue, against sorting in plain Python."""

from __future__ import annotations

import random
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_on_ranks
from torch import Tensor
from torch.nn.functional import normalize

from fanoise_lightning.evaluation.embedding_table import Embeddings, EmbeddingTable
from fanoise_lightning.evaluation.precision_at_one import PrecisionAtOne
from fanoise_lightning.evaluation.scorer import SuiteScorer
from fanoise_lightning.evaluation.subset_ranks import subset_ranks
from fanoise_lightning.evaluation.ties import TIE
from fanoise_lightning.subset import Subset

ITEMS, QUERIES = 50, 20


class Part:
    """A subset with one to three right answers a query, in a catalogue of items 10 to 49."""

    def __init__(self, seed: int = 0, *, catalogue: bool = True, excluded: bool = False) -> None:
        draw = random.Random(seed)
        self.subset = Subset("mine", "retrieval", "IND")
        self.embeddings = normalize(
            torch.randn(ITEMS, 6, generator=torch.Generator().manual_seed(seed)), dim=1
        )
        self.right = [draw.sample(range(10, ITEMS), draw.randint(1, 3)) for _ in range(QUERIES)]
        wrong = [draw.sample(sorted(set(range(10, ITEMS)) - set(own)), 7) for own in self.right]
        self.catalogue = torch.arange(10, ITEMS) if catalogue else None
        listed = self.right if catalogue else [own + others for own, others in zip(self.right, wrong)]
        most = max(map(len, listed))
        self.candidates = torch.tensor([row + [-1] * (most - len(row)) for row in listed])
        self.queries = torch.tensor([draw.choice(range(ITEMS)) for _ in range(QUERIES)])
        self.num_right = torch.tensor([len(own) for own in self.right])
        self.excluded = None
        if excluded:  # some of them are not in the catalogue, and the last is padding
            rows = [[draw.randrange(ITEMS) for _ in range(9)] + [-1] for _ in range(QUERIES)]
            self.excluded = torch.tensor(rows)

    def places(self, arrived: set[int] | None = None) -> list[list[int]]:
        """The places of the right answers of each query, from 1, by sorting its candidates."""
        arrived = set(range(ITEMS)) if arrived is None else arrived
        rows = []
        for query, listed, right in zip(self.queries.tolist(), self.candidates.tolist(), self.right):
            candidates = {item for item in listed if item >= 0}
            if self.catalogue is not None:
                excluded = set() if self.excluded is None else set(self.excluded[len(rows)].tolist())
                candidates |= set(self.catalogue.tolist()) - {query} - excluded
            candidates &= arrived
            mine = [
                float(self.embeddings[query].double() @ self.embeddings[i].double()) for i in range(ITEMS)
            ]
            order = sorted(candidates, key=lambda item: -mine[item])
            scored = query in arrived
            rows.append([order.index(item) + 1 for item in right if item in candidates] if scored else [])
        return rows


def ranks_of(part: Part, arrived: set[int] | None = None) -> list[list[int]]:
    position = torch.tensor([item if arrived is None or item in arrived else -1 for item in range(ITEMS)])
    ranks = subset_ranks(
        Embeddings(part.embeddings, position),
        part.queries,
        part.candidates,
        warn=False,
        num_right=part.num_right,
        catalogue=part.catalogue,
        excluded=part.excluded,
    )
    assert (ranks.tied == 1).all()
    return [
        [b + 1 for b, own in zip(*row) if own] for row in zip(ranks.better.tolist(), ranks.is_right.tolist())
    ]


@pytest.mark.parametrize("catalogue", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_places_are_those_of_sorting(seed: int, catalogue: bool) -> None:
    part = Part(seed, catalogue=catalogue)
    assert ranks_of(part) == part.places()


def test_excluded_items_of_the_catalogue_are_no_candidates() -> None:
    part, whole = Part(0, excluded=True), Part(0)
    assert ranks_of(part) == part.places() != whole.places()


@pytest.mark.parametrize("catalogue", [True, False])
def test_items_that_never_arrived_are_no_candidates(catalogue: bool) -> None:
    part, arrived = Part(2, catalogue=catalogue), set(range(0, ITEMS, 3)) | set(range(1, ITEMS, 3))
    found = ranks_of(part, arrived)
    assert found == part.places(arrived)
    assert [] in found  # a query is skipped only if it is missing, or all of its answers are
    assert any(0 < len(own) < len(right) for own, right in zip(found, part.right))


@pytest.mark.parametrize("excluded", [False, True])
def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, excluded: bool) -> None:
    part = Part(3, excluded=excluded)
    monkeypatch.setattr("fanoise_lightning.evaluation.subset_ranks._SCORES_PER_BLOCK", 100)
    monkeypatch.setattr("fanoise_lightning.evaluation.embedding_table._NUMBERS_PER_PART", 14)
    assert ranks_of(part) == part.places()


def by_loop(
    embeddings: Embeddings, queries: Tensor, candidates: Tensor, num_right: Tensor
) -> list[list[tuple[int, int]]]:
    """How many candidates are before each right answer and tie with it, query by query in numpy's float64."""
    position = embeddings.position.tolist()
    rows = []
    for query, listed, count in zip(queries.tolist(), candidates.tolist(), num_right.tolist()):
        arrived = [item for item in dict.fromkeys(listed) if item >= 0 and position[item] >= 0]
        places = [position[item] for item in arrived]
        own = embeddings.rows[position[query]].double().numpy()
        products = embeddings.rows[places].double().numpy() @ own
        scores = dict(zip(arrived, products.astype(np.float32).astype(np.float64)))
        row = []
        for item in dict.fromkeys(listed[:count]):
            if item in scores and position[query] >= 0:
                before = [score for score in scores.values() if score > scores[item] + TIE]
                best = max(score for score in scores.values() if score <= scores[item] + TIE)
                tied = [score for score in scores.values() if best - TIE <= score <= best]
                row.append((len(before), len(tied)))
        rows.append(row)
    return rows


@pytest.mark.parametrize("conversion", [0, 4, 1000])
@pytest.mark.parametrize("num_items", [30, 3000])
def test_whatever_queries_are_compared_with_the_ranks_are_those_of_a_loop(
    monkeypatch: pytest.MonkeyPatch, num_items: int, conversion: int
) -> None:
    """All items at once, or those of a few queries; with ties, repeats, padding and missing items."""
    monkeypatch.setattr("fanoise_lightning.evaluation.subset_ranks._CONVERSION", conversion or 4)
    if not conversion:
        monkeypatch.setattr("fanoise_lightning.evaluation.subset_ranks._SCORES_PER_BLOCK", 1)
    generator = torch.Generator().manual_seed(num_items + conversion)
    rows = normalize(torch.randint(-1, 2, (num_items, 5), generator=generator) + 0.1, dim=1)
    position = torch.randperm(num_items, generator=generator)
    position[::7] = -1
    queries = torch.randint(num_items, (90,), generator=generator)
    candidates = torch.randint(num_items, (90, 23), generator=generator)
    candidates[torch.arange(23) >= torch.randint(3, 24, (90, 1), generator=generator)] = -1
    num_right = torch.randint(1, 4, (90,), generator=generator)
    embeddings = Embeddings(rows, position)
    ranks = subset_ranks(embeddings, queries, candidates, warn=False, num_right=num_right)
    found = [
        [(b, t) for b, t, own in zip(*row) if own]
        for row in zip(ranks.better.tolist(), ranks.tied.tolist(), ranks.is_right.tolist())
    ]
    assert found == by_loop(embeddings, queries, candidates, num_right)
    assert max(tied for row in found for _, tied in row) > 1


def test_the_catalogue_gives_what_listing_all_of_it_gives() -> None:
    part = Part(4)
    items = [
        set(range(10, ITEMS)) - {query} - set(own) for query, own in zip(part.queries.tolist(), part.right)
    ]
    listed = [own + sorted(others) for own, others in zip(part.right, items)]
    most = max(map(len, listed))
    candidates = torch.tensor([row + [-1] * (most - len(row)) for row in listed])
    table = Embeddings(part.embeddings, torch.arange(ITEMS))
    ranks = [
        subset_ranks(table, part.queries, rows, num_right=part.num_right, catalogue=catalogue)
        for rows, catalogue in ((part.candidates, part.catalogue), (candidates, None))
    ]
    assert torch.equal(ranks[0].better, ranks[1].better)
    assert torch.equal(ranks[0].num_candidates, ranks[1].num_candidates)


class Suite:
    def __init__(self) -> None:
        self.subsets, self.numbers = [Part(5)], [torch.arange(ITEMS)]

    def __len__(self) -> int:
        return ITEMS


METRICS = ("recall_at_1", "recall_at_5", "ndcg_at_10", "mrr", "median_rank")


def scored(rank: int, world_size: int) -> dict[str, float]:
    suite = Suite()
    scorer = SuiteScorer(suite, "cpu", METRICS)
    mine = torch.arange(ITEMS)[rank::world_size]
    for index in mine.split(9):
        scorer.update(suite.subsets[0].embeddings[index], index)
    return scorer.compute().metrics("val")


def test_the_board_has_each_metric_of_the_subset_and_of_its_means() -> None:
    values, places = scored(0, 1), Suite().subsets[0].places()
    assert values["val/recall_at_5/overall"] == pytest.approx(
        fmean(sum(place <= 5 for place in own) / len(own) for own in places)
    )
    assert values["val/mrr/overall"] == pytest.approx(fmean(1 / min(own) for own in places))
    assert values["val/precision_at_1/overall"] == pytest.approx(fmean(min(own) == 1 for own in places))
    assert {name.split("/")[1] for name in values} == {"precision_at_1", *METRICS}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_find_what_one_process_finds(world_size: int) -> None:
    for values in run_on_ranks(scored, world_size, world_size):
        assert values == scored(0, 1)


@pytest.mark.parametrize(
    ("num_right", "message"),
    [
        (torch.tensor([1]), r"`num_right` must be \(Q,\) = \(2,\), got \(1,\)"),
        (torch.tensor([1, 0]), "row 1 has 0 right answers among its 1 candidates"),
        (torch.tensor([3, 1]), "row 0 has 3 right answers among its 2 candidates"),
    ],
)
def test_wrong_counts_of_right_answers_are_refused(num_right: Tensor, message: str) -> None:
    table: Any = EmbeddingTable(3)
    table.update(torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match=message):
        subset_ranks(
            table.compute(), torch.tensor([0, 0]), torch.tensor([[1, 2], [1, -1]]), num_right=num_right
        )


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_what_are_no_numbers_of_items_is_refused_before_anything_is_embedded(dtype: torch.dtype) -> None:
    queries, candidates = torch.tensor([0]), torch.tensor([[1]])
    for pair in ((queries.to(dtype), candidates), (queries, candidates.to(dtype))):
        with pytest.raises(ValueError, match=rf"subset 's': .* must be numbers of items, .*{dtype}"):
            PrecisionAtOne(*pair, name="s")


def test_a_broken_embedding_in_the_catalogue_is_an_error() -> None:
    part = Part(6)
    part.embeddings[17] = torch.nan
    with pytest.raises(ValueError, match="scores are not finite"):
        ranks_of(part)


def test_a_subset_without_a_scored_query_is_told_to_have_no_score() -> None:
    part = Part(0)
    table = Embeddings(part.embeddings, torch.full((ITEMS,), -1))
    with pytest.warns(UserWarning, match="no query has both an embedding and a right answer.*no score"):
        ranks = subset_ranks(table, part.queries, part.candidates, num_right=part.num_right)
    assert not ranks.is_scored.any()
