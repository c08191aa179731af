"""Ranks and retrieval metrics, against torchmetrics, all orders of the tied, and precision@1."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields
from statistics import fmean, median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.retrieval import (
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from fanoise_lightning.evaluation.precision_at_one import precision_at_one
from fanoise_lightning.evaluation.ranks import Ranks, rank
from fanoise_lightning.evaluation.retrieval_metrics import RetrievalMetric, retrieval_metrics

NAMES = ["recall_at_1", "recall_at_3", "ndcg_at_1", "ndcg_at_4", "mrr", "median_rank"]


def metric(name: str) -> RetrievalMetric:
    return retrieval_metrics([name])[0]


def right_first(counts: list[int]) -> Tensor:
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def by_order(order: list[bool]) -> dict[str, float]:
    """The metrics of one query from the textbook, of candidates in a strict order."""
    hits = [place for place, right in enumerate(order, 1) if right]
    values = {"mrr": 1 / hits[0], "median_rank": hits[0]}
    for k in (1, 3, 4):
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(hits)) + 1))
        gain = sum(1 / math.log2(place + 1) for place in hits if place <= k)
        values |= {f"recall_at_{k}": sum(p <= k for p in hits) / len(hits), f"ndcg_at_{k}": gain / ideal}
    return values


@pytest.mark.parametrize("most", [1, 4])
def test_without_ties_the_values_are_those_of_torchmetrics(most: int) -> None:
    generator = torch.Generator().manual_seed(most)
    scores = (
        torch.stack([torch.randperm(30, generator=generator) for _ in range(20)]).float() + 1
    )  # it counts no 0
    counts = torch.randint(1, most + 1, (20,), generator=generator).tolist()
    ranks = rank(scores, right_first(counts))
    is_right = torch.arange(30) < torch.tensor(counts)[:, None]
    theirs = {
        "recall_at_3": [retrieval_recall(s, r, top_k=3) for s, r in zip(scores, is_right)],
        "recall_at_10": [retrieval_recall(s, r, top_k=10) for s, r in zip(scores, is_right)],
        "ndcg_at_10": [retrieval_normalized_dcg(s, r, top_k=10) for s, r in zip(scores, is_right)],
        "mrr": [retrieval_reciprocal_rank(s, r) for s, r in zip(scores, is_right)],
    }
    for name, values in theirs.items():
        assert metric(name).values(ranks).tolist() == pytest.approx([float(v) for v in values]), name


@given(
    st.integers(1, 6).flatmap(
        lambda c: st.tuples(
            st.lists(st.integers(0, 2), min_size=c, max_size=c),
            st.integers(1, c),
            st.lists(st.booleans(), min_size=c, max_size=c),
        )
    )
)
@settings(deadline=None, max_examples=60)
def test_a_tie_is_worth_the_mean_over_all_orders_of_the_tied(
    query: tuple[list[int], int, list[bool]],
) -> None:
    scores, num_right, mask = query[0], query[1], [True, *query[2][1:]]
    left = [(score, place < num_right) for place, score in enumerate(scores) if mask[place]]
    orders = [
        [right for _, right in order]
        for order in itertools.permutations(left)
        if all(before[0] >= after[0] for before, after in itertools.pairwise(order))
    ]
    ranks = rank(torch.tensor([scores]).float(), right_first([num_right]), torch.tensor([mask]))
    for name in NAMES:
        expected = fmean(by_order(order)[name] for order in orders)
        assert metric(name).values(ranks).tolist() == pytest.approx([expected]), name
    assert ranks.precision_at_one().tolist() == pytest.approx([fmean(order[0] for order in orders)])


@given(st.lists(st.lists(st.integers(0, 25), min_size=5, max_size=5), min_size=1, max_size=8))
@settings(deadline=None)
def test_recall_at_1_of_one_right_answer_is_precision_at_1(rows: list[list[int]]) -> None:
    """Scores differ by tenths of the tolerance: ties that are not transitive."""
    scores = 0.5 + torch.tensor(rows) * 1e-7
    ranks = rank(scores, right_first([1] * len(rows)))
    recall = metric("recall_at_1").values(ranks).tolist()
    assert recall == pytest.approx(precision_at_one(scores).tolist())
    for row, value in zip(scores.double(), recall):  # the rule of `ties.py`, in plain Python
        best = [i for i, score in enumerate(row.tolist()) if score >= float(row.max()) - 1e-6]
        assert value == pytest.approx(1 / len(best) if 0 in best else 0)


def test_a_collapsed_encoder_scores_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 5, (50,), generator=generator).tolist()
    mask = torch.rand(50, 12, generator=generator) < 0.8
    mask[:, :4] = True
    ranks = rank(torch.full((50, 12), 0.3), right_first(counts), mask)
    better = rank(torch.rand(50, 12, generator=generator), right_first(counts), mask)
    for name in NAMES:
        assert metric(name).value(ranks) == pytest.approx(metric(name).value(better.by_chance()))
    shares = [count / float(row.sum()) for count, row in zip(counts, mask)]
    assert float(better.by_chance().precision_at_one().mean()) == pytest.approx(fmean(shares))


def test_many_blocks_are_ranked_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(23, 9, generator=torch.Generator().manual_seed(1))
    whole = rank(scores, right_first([2] * 23))
    monkeypatch.setattr("fanoise_lightning.evaluation.ranks._SCORES_PER_BLOCK", 30)
    blocks = rank(scores, right_first([2] * 23))
    assert all(torch.equal(getattr(whole, name), getattr(blocks, name)) for name in ("better", "tied"))


@pytest.mark.parametrize("num_right", [1, 3, 40])
def test_counting_and_sorting_agree(monkeypatch: pytest.MonkeyPatch, num_right: int) -> None:
    """Scores that differ by tenths of the tolerance, with right answers that are no candidates."""
    generator = torch.Generator().manual_seed(num_right)
    scores = 0.5 + torch.randint(400, (60, 50), generator=generator) * 1e-7
    counts = torch.randint(1, num_right + 1, (60,), generator=generator).tolist()
    mask = torch.rand(60, 50, generator=generator) < 0.8
    found = []
    for most in (-1, 100):
        monkeypatch.setattr("fanoise_lightning.evaluation.ranks._SORTING", most)
        found.append(rank(scores, right_first(counts), mask))
    for field in fields(Ranks):
        assert torch.equal(getattr(found[0], field.name), getattr(found[1], field.name)), field.name
    assert torch.equal(found[0].is_right, right_first(counts) & mask[:, : max(counts)])
    assert found[0].tied.max() > 1


@pytest.mark.parametrize("sorting_from", [0, 100])
@pytest.mark.parametrize("atol", [0.0, 0.25])
def test_scores_that_are_the_tolerance_apart_tie(
    monkeypatch: pytest.MonkeyPatch, atol: float, sorting_from: int
) -> None:
    monkeypatch.setattr("fanoise_lightning.evaluation.ranks._SORTING", sorting_from)
    scores = torch.randint(6, (20, 8), generator=torch.Generator().manual_seed(0)) / 4
    ranks = rank(scores, right_first([3] * 20), atol=atol)

    def tied_with(own: float, row: list[float]) -> float:
        """The lowest score of those that tie with it: a tie reaches down from its best score."""
        return max(score for score in row if score <= own + atol) - atol

    for row, better, tied in zip(scores.tolist(), ranks.better.tolist(), ranks.tied.tolist()):
        for own, before, within in zip(row, better, tied):
            assert before == sum(score > own + atol for score in row)
            assert before + within == sum(score >= tied_with(own, row) for score in row)
    lowest = [tied_with(max(row[:3]), row) for row in scores.tolist()]
    assert ranks.first_tied.tolist() == [sum(x >= low for x in row[:3]) for row, low in zip(scores, lowest)]


def test_right_answers_may_be_in_any_column() -> None:
    generator = torch.Generator().manual_seed(4)
    scores, mask = torch.rand(9, 12, generator=generator), torch.rand(9, 12, generator=generator) < 0.7
    is_right = right_first([1, 2, 3] * 3)
    order = torch.rand(9, 12, generator=generator).argsort(dim=1)
    moved = scores.gather(1, order), is_right, mask.gather(1, order)
    columns = order.argsort(dim=1)[:, :3].masked_fill(~is_right, 99)
    expected, found = rank(scores, is_right, mask), rank(*moved, columns=columns)
    for field in fields(Ranks):
        assert torch.equal(getattr(expected, field.name), getattr(found, field.name)), field.name


def test_a_query_without_a_scored_answer_counts_nowhere() -> None:
    ranks = rank(torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]]), right_first([1, 1])).at(
        torch.tensor([0, 2]), 3
    )
    assert metric("mrr").values(ranks).tolist() == pytest.approx([1 / 3, 1])
    assert ranks.precision_at_one().isnan().tolist() == [False, True, False]


def test_the_median_is_that_of_the_first_right_answers() -> None:
    scores = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(n)) for n in range(8)])
    firsts = [1 + sum(row[j] > max(row[:2]) for j in range(9)) for row in scores.tolist()]
    ranks = rank(scores.float(), right_first([2] * 8))
    assert metric("median_rank").value(ranks) == median(firsts)
    lower, upper = metric("median_rank").interval(ranks)
    assert lower <= median(firsts) <= upper


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_score_is_an_error_that_names_subset_and_row(bad: float) -> None:
    scores = torch.tensor([[0.5, 0.1], [0.5, bad]])
    with pytest.raises(ValueError, match=r"'GQA': 1 of 4 scores are not finite \(first in row 9\)"):
        rank(scores, right_first([1, 1]), name="GQA", row=8)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["recall_at_0"], "got 'recall_at_0'"),
        (["recall@10"], "takes 'recall_at_1', .* got 'recall@10'"),
        (["precision_at_1"], "precision_at_1 is always reported"),
        (["mrr", "mrr"], "has 'mrr' twice"),
    ],
)
def test_unknown_metrics_are_named(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(names)


def test_a_single_string_is_no_list_of_metrics() -> None:
    with pytest.raises(TypeError, match=r"pass \['mrr'\]"):
        retrieval_metrics("mrr")


def test_ranks_are_of_queries() -> None:
    ranks = rank(torch.zeros(3, 2), right_first([1, 1, 1]))
    assert len(ranks) == len(Ranks.cat([ranks, ranks])) / 2 == 3
