from __future__ import annotations

import pytest
import torch
from evaluation.subsets import expected, subset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from fanoise_lightning.evaluation.precision_at_one import PrecisionAtOne, SubsetResult, precision_at_one


def score(metric: PrecisionAtOne) -> SubsetResult:
    metric.compute()
    assert metric.result is not None
    return metric.result


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
    result = score(metric)
    assert result.precision == pytest.approx(expected(queries, candidates, embeddings))
    assert 0.5 < result.precision < 1
    assert (result.num_queries, result.num_skipped) == (40, 0)


def test_many_blocks_agree_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, candidates, embeddings = subset(seed=3)
    monkeypatch.setattr("fanoise_lightning.evaluation.embedding_table._NUMBERS_PER_PART", 30)
    monkeypatch.setattr("fanoise_lightning.evaluation.subset_ranks._SCORES_PER_BLOCK", 200)
    metric = PrecisionAtOne(queries, candidates)
    metric.update(embeddings, torch.arange(len(embeddings)))
    assert metric.compute() == pytest.approx(expected(queries, candidates, embeddings))


def test_order_and_repeats_of_arrival_do_not_matter() -> None:
    queries, candidates, embeddings = subset(seed=1)
    metric = PrecisionAtOne(queries, candidates)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for index in torch.cat([order, order[:7]]).split(9):
        metric.update(embeddings[index], index)
    assert metric.compute() == pytest.approx(expected(queries, candidates, embeddings))


@pytest.mark.parametrize("rounding", [0.0, 5e-8])
def test_a_collapsed_encoder_scores_chance(rounding: float) -> None:
    """All embeddings equal, exactly or up to the rounding of different batches: 1 / C, not 1 and not luck."""
    generator = torch.Generator().manual_seed(0)
    one = normalize(torch.randn(1, 3584, generator=generator), dim=1)
    embeddings = one + rounding * torch.randn(201, 1, generator=generator).clamp(-2, 2) * one
    candidates = torch.stack([1 + torch.randperm(200, generator=generator)[:50] for _ in range(100)])
    metric = PrecisionAtOne(torch.zeros(100, dtype=torch.long), candidates)
    metric.update(embeddings, torch.arange(201))
    assert score(metric) == (pytest.approx(1 / 50), 100, 100, 0)


def test_a_candidate_listed_twice_counts_once() -> None:
    embeddings = torch.eye(3)
    metric = PrecisionAtOne(torch.tensor([0, 0]), torch.tensor([[0, 1, 0], [1, 2, 2]]))
    metric.update(embeddings, torch.arange(3))
    result = score(metric)  # the first query wins alone, the second ties with one other
    assert (result.precision, result.num_ties) == (0.75, 1)


def test_queries_without_their_item_or_ground_truth_are_skipped() -> None:
    queries, candidates = torch.tensor([0, 1, 0, 2]), torch.tensor([[3, 4], [3, -1], [4, 3], [3, 4]])
    metric = PrecisionAtOne(queries, candidates, name="vqa")
    embeddings = torch.eye(5)
    embeddings[0] = embeddings[3]
    arrived = torch.tensor([0, 2, 3])  # 1 is the second query, 4 the ground truth of the third
    metric.update(embeddings[arrived], arrived)
    with pytest.warns(UserWarning, match="'vqa': 2 of 5 texts and images have no embedding"):
        result = score(metric)
    assert result == SubsetResult(precision=1.0, num_queries=2, num_ties=0, num_skipped=2)


def test_a_subset_of_which_nothing_arrived_has_no_score() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1]]))
    metric.update(torch.empty(0, 8), torch.empty(0, dtype=torch.long))  # a batch of broken images
    with pytest.warns(UserWarning, match="2 of 2 texts and images have no embedding"):
        result = score(metric)
    assert metric.compute().isnan()
    assert (result.num_queries, result.num_skipped) == (0, 1)


def test_half_precision_switches_do_not_touch_the_scores() -> None:
    """Two candidates that bfloat16 cannot tell apart, scored inside autocast."""
    embeddings = torch.tensor([[1.0, 0.0], [0.99999, 0.0], [0.9999, 0.0]])
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1, 2]]))
    metric.update(embeddings, torch.arange(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert score(metric).num_ties == 0


def test_a_broken_embedding_is_an_error_that_names_the_subset() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1]]), name="CIRR")
    metric.update(torch.tensor([[1.0, 0.0], [float("nan"), 0.0]]), torch.arange(2))
    with pytest.raises(ValueError, match="'CIRR'"):
        metric.compute()


def test_an_item_that_the_subset_does_not_have_is_an_error() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1]]), name="CIRR")
    metric.update(torch.eye(3), torch.tensor([0, 1, 7]))
    with pytest.raises(ValueError, match=r"'CIRR' has the items 0 to 1.*items 0 to 7"):
        metric.compute()


@pytest.mark.parametrize(
    ("queries", "candidates", "message"),
    [
        (torch.tensor([0]), torch.tensor([1]), r"\(1,\) and \(1,\)"),
        (torch.tensor([0, 1]), torch.tensor([[1]]), r"\(2,\) and \(1, 1\)"),
        (torch.zeros(0, dtype=torch.long), torch.zeros(0, 4, dtype=torch.long), "no queries"),
        (torch.tensor([0, 0]), torch.tensor([[1], [-1]]), "row 1 has no query or no ground truth"),
        (torch.tensor([0]), torch.tensor([[1, -2]]), "`candidates` has the item -2; padding must be -1"),
    ],
)
def test_bad_subsets_are_refused(queries: Tensor, candidates: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrecisionAtOne(queries, candidates, name="bad")


def test_embeddings_and_index_of_different_lengths_are_refused() -> None:
    metric = PrecisionAtOne(torch.tensor([0]), torch.tensor([[1]]))
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3,\)"):
        metric.update(torch.eye(2), torch.arange(3))
