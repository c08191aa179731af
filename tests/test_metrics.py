from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_on_ranks
from torch import Tensor
from torch.nn.functional import normalize

from fanoise_lightning.evaluation.precision_at_one import (
    EmbeddingTable,
    PrecisionAtOne,
    SubsetResult,
    precision_at_one,
)


def brute_force(queries: list[list[float]], candidates: list[list[list[float]]]) -> list[float]:
    """Cosine by cosine, in plain Python: candidate 0 of each query is the ground truth."""
    outcomes = []
    for query, own in zip(queries, candidates):
        scores = [sum(a * b for a, b in zip(query, candidate)) for candidate in own]
        tied = sum(abs(score - max(scores)) < 1e-6 for score in scores)
        outcomes.append(1 / tied if abs(scores[0] - max(scores)) < 1e-6 else 0.0)
    return outcomes


def subset(num_queries: int = 40, num_items: int = 60, dim: int = 8, seed: int = 0) -> tuple[Tensor, ...]:
    """Queries, ragged candidates and the embedding of each side; half of the queries are easy."""
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.stack(
        [torch.randperm(num_items, generator=generator)[:12] for _ in range(num_queries)]
    )
    lengths = torch.randint(1, 13, (num_queries,), generator=generator)
    candidates[torch.arange(12) >= lengths[:, None]] = -1
    queries = torch.randint(num_items, (num_queries,), generator=generator)
    queries[::2] = candidates[::2, 0]
    return queries, candidates, normalize(torch.randn(num_items, dim, generator=generator), dim=1)


def expected(queries: Tensor, candidates: Tensor, embeddings: Tensor) -> float:
    own = [[embeddings[c].tolist() for c in row if c >= 0] for row in candidates.tolist()]
    outcomes = brute_force(embeddings[queries].tolist(), own)
    return sum(outcomes) / len(outcomes)


@given(
    st.integers(1, 5).flatmap(
        lambda c: st.lists(
            st.tuples(
                st.lists(st.integers(0, 3), min_size=c, max_size=c),
                st.lists(st.booleans(), min_size=c, max_size=c),
            ),
            min_size=1,
            max_size=6,
        )
    )
)
@settings(deadline=None)
def test_outcomes_agree_with_a_loop_over_queries(rows: list[tuple[list[int], list[bool]]]) -> None:
    scores = torch.tensor([row[0] for row in rows]).float()
    mask = torch.tensor([[True, *row[1][1:]] for row in rows])
    for outcome, values, kept in zip(precision_at_one(scores, mask), scores.tolist(), mask.tolist()):
        values = [value for value, keep in zip(values, kept) if keep]
        won = values[0] == max(values)
        assert outcome == pytest.approx(1 / values.count(values[0]) if won else 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_score_is_an_error_that_names_the_subset(bad: float) -> None:
    scores = torch.tensor([[0.5, 0.1], [0.5, bad]])
    with pytest.raises(ValueError, match=r"subset 'GQA': 1 of 4 scores are not finite \(first in row 1\)"):
        precision_at_one(scores, name="GQA")


def test_a_non_finite_score_of_no_candidate_does_not_matter() -> None:
    scores = torch.tensor([[0.5, float("nan")]])
    assert precision_at_one(scores, torch.tensor([[True, False]])).tolist() == [1.0]


def test_a_masked_ground_truth_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"ground truth .* row 1"):
        precision_at_one(torch.zeros(2, 2), torch.tensor([[True, True], [False, True]]))


def test_a_mask_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 1\)"):
        precision_at_one(torch.zeros(2, 2), torch.ones(2, 1, dtype=torch.bool))


def test_ragged_candidates_agree_with_brute_force() -> None:
    queries, candidates, embeddings = subset()
    metric = PrecisionAtOne(queries, candidates)
    metric.update(embeddings, torch.arange(len(embeddings)))
    result = metric.compute()
    assert result["precision"] == pytest.approx(expected(queries, candidates, embeddings))
    assert 0.5 < result["precision"] < 1
    assert (result["num_queries"], result["num_skipped"]) == (40, 0)


def test_many_blocks_agree_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, candidates, embeddings = subset(seed=3)
    monkeypatch.setattr("fanoise_lightning.evaluation.precision_at_one._CANDIDATES_PER_BLOCK", 30)
    metric = PrecisionAtOne(queries, candidates)
    metric.update(embeddings, torch.arange(len(embeddings)))
    assert metric.compute()["precision"] == pytest.approx(expected(queries, candidates, embeddings))


def test_order_and_repeats_of_arrival_do_not_matter() -> None:
    queries, candidates, embeddings = subset(seed=1)
    metric = PrecisionAtOne(queries, candidates)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for index in torch.cat([order, order[:7]]).split(9):
        metric.update(embeddings[index], index)
    assert metric.compute()["precision"] == pytest.approx(expected(queries, candidates, embeddings))


@pytest.mark.parametrize("rounding", [0.0, 5e-8])
def test_a_collapsed_encoder_scores_chance(rounding: float) -> None:
    """All embeddings equal, exactly or up to the rounding of different batches: 1 / C, not 1 and not luck."""
    generator = torch.Generator().manual_seed(0)
    one = normalize(torch.randn(1, 3584, generator=generator), dim=1)
    embeddings = one + rounding * torch.randn(201, 1, generator=generator).clamp(-2, 2) * one
    candidates = torch.stack([1 + torch.randperm(200, generator=generator)[:50] for _ in range(100)])
    metric = PrecisionAtOne(torch.zeros(100, dtype=torch.long), candidates)
    metric.update(embeddings, torch.arange(201))
    assert metric.compute() == {
        "precision": pytest.approx(1 / 50),
        "num_queries": 100,
        "num_ties": 100,
        "num_skipped": 0,
    }


def test_a_candidate_listed_twice_counts_once() -> None:
    embeddings = torch.eye(3)
    metric = PrecisionAtOne(torch.tensor([0, 0]), torch.tensor([[0, 1, 0], [1, 2, 2]]))
    metric.update(embeddings, torch.arange(3))
    result = metric.compute()  # the first query wins alone, the second ties with one other
    assert (result["precision"], result["num_ties"]) == (0.75, 1)


def test_queries_without_their_side_or_ground_truth_are_skipped() -> None:
    queries, candidates = torch.tensor([0, 1, 0, 2]), torch.tensor([[3, 4], [3, -1], [4, 3], [3, 4]])
    metric = PrecisionAtOne(queries, candidates, name="vqa")
    embeddings = torch.eye(5)
    embeddings[0] = embeddings[3]
    arrived = torch.tensor([0, 2, 3])  # 1 is the second query, 4 the ground truth of the third
    metric.update(embeddings[arrived], arrived)
    with pytest.warns(UserWarning, match="'vqa': 2 of 5 texts and images have no embedding"):
        result = metric.compute()
    assert result == {"precision": 1.0, "num_queries": 2, "num_ties": 0, "num_skipped": 2}


def test_a_subset_of_which_nothing_arrived_has_no_score() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1]]))
    metric.update(torch.empty(0, 8), torch.empty(0, dtype=torch.long))  # a batch of broken images
    with pytest.warns(UserWarning, match="2 of 2 texts and images have no embedding"):
        result = metric.compute()
    assert result["precision"] != result["precision"]
    assert (result["num_queries"], result["num_skipped"]) == (0, 1)


def test_half_precision_switches_do_not_touch_the_scores() -> None:
    """Two candidates that bfloat16 cannot tell apart, scored inside autocast."""
    embeddings = torch.tensor([[1.0, 0.0], [0.99999, 0.0], [0.9999, 0.0]])
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1, 2]]))
    metric.update(embeddings, torch.arange(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert metric.compute()["num_ties"] == 0


def test_a_broken_embedding_is_an_error_that_names_the_subset() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1]]), name="CIRR")
    metric.update(torch.tensor([[1.0, 0.0], [float("nan"), 0.0]]), torch.arange(2))
    with pytest.raises(ValueError, match="'CIRR'"):
        metric.compute()


def test_a_side_that_the_subset_does_not_have_is_an_error() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1]]), name="CIRR")
    metric.update(torch.eye(3), torch.tensor([0, 1, 7]))
    with pytest.raises(ValueError, match=r"'CIRR' has the sides 0 to 1.*sides 0 to 7"):
        metric.compute()


@pytest.mark.parametrize(
    ("queries", "candidates", "message"),
    [
        (torch.tensor([0]), torch.tensor([1]), r"\(1,\) and \(1,\)"),
        (torch.tensor([0, 1]), torch.tensor([[1]]), r"\(2,\) and \(1, 1\)"),
        (torch.zeros(0, dtype=torch.long), torch.zeros(0, 4, dtype=torch.long), "no queries"),
        (torch.tensor([0, 0]), torch.tensor([[1], [-1]]), "row 1 has no query or no ground truth"),
    ],
)
def test_bad_subsets_are_refused(queries: Tensor, candidates: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrecisionAtOne(queries, candidates, name="bad")


def test_embeddings_and_index_of_different_lengths_are_refused() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1]]))
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3,\)"):
        metric.update(torch.eye(2), torch.arange(3))


def test_reset_forgets_the_embeddings() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1, 2]]))
    metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.arange(3))
    assert metric.compute()["precision"] == 0
    metric.reset()
    metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.arange(3))
    assert metric.compute()["precision"] == 1


def test_subsets_score_on_a_shared_table_what_they_score_alone() -> None:
    """Two subsets whose sides are 60 of 100, in different orders, 20 of them the same."""
    generator = torch.Generator().manual_seed(5)
    everything = normalize(torch.randn(100, 8, generator=generator), dim=1)
    order = torch.randperm(100, generator=generator)
    table = EmbeddingTable(num_items=100)
    for index in torch.randperm(100, generator=generator).split(17):
        table.update(everything[index], index)
    for seed, sides in enumerate((order[:60], order[40:].flip(0))):
        queries, candidates, _ = subset(seed=seed)
        result = table.compute().select(sides).score(queries, candidates)
        assert result["precision"] == pytest.approx(expected(queries, candidates, everything[sides]))
        metric = PrecisionAtOne(queries, candidates)
        metric.update(everything[sides], torch.arange(60))
        assert result == metric.compute()


def test_only_the_sides_of_a_subset_count_as_missing() -> None:
    table = EmbeddingTable(num_items=10)
    table.update(torch.eye(3), torch.tensor([0, 4, 9]))
    embeddings = table.compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embeddings.score(torch.tensor([0]), torch.tensor([[4, 9, -1]]))
    with pytest.warns(UserWarning, match="subset 'b': 2 of 4 texts and images have no embedding"):
        embeddings.score(torch.tensor([0, 0]), torch.tensor([[4, 5], [4, 6]]), "b")


def test_a_side_that_the_table_does_not_have_is_an_error() -> None:
    table = EmbeddingTable(num_items=2, owner="the suite")
    table.update(torch.eye(2), torch.tensor([0, 2]))
    with pytest.raises(
        ValueError, match="the suite has the sides 0 to 1, got embeddings of the sides 0 to 2"
    ):
        table.compute()


def test_the_embeddings_are_held_once() -> None:
    table = EmbeddingTable(num_items=60)
    for index in torch.arange(60).split(7):
        table.update(torch.ones(len(index), 8, dtype=torch.bfloat16), index)
    embeddings = table.compute()
    (held,) = table.embeddings
    assert held.data_ptr() == embeddings.rows.data_ptr() == embeddings.select(torch.arange(3)).rows.data_ptr()
    assert (embeddings.rows.shape, embeddings.rows.dtype) == ((60, 8), torch.float32)


@pytest.mark.parametrize("case", ["sharded", "one rank empty"])
def test_two_processes_compute_what_one_does(case: str) -> None:
    queries, candidates, embeddings = subset()
    everything, nothing = torch.arange(60), torch.arange(0)

    def rank_of(rank: int) -> SubsetResult:
        if case == "sharded":
            index = torch.cat([torch.arange(rank, 60, 2), torch.tensor([0] * (1 + rank))])  # a sampler pads
        else:
            index = everything if rank == 0 else nothing
        metric = PrecisionAtOne(queries, candidates)
        for part in index.split(13) if len(index) else ():
            metric.update(embeddings[part], part)
        return metric.compute()

    alone = PrecisionAtOne(queries, candidates)
    alone.update(embeddings, everything)
    assert run_on_ranks(rank_of, 2) == [alone.compute()] * 2
    assert alone.compute()["precision"] == pytest.approx(expected(queries, candidates, embeddings))
