"""MMEB's leaderboard: each metric against lists that are ranked and counted one by one."""

from __future__ import annotations

from itertools import permutations
from math import log2
from statistics import fmean

import pytest
import torch

from fanoise_lightning.evaluation.leaderboard import leaderboard, leaderboard_gaps, ranking_metrics
from fanoise_lightning.evaluation.mmeb import CATALOG
from fanoise_lightning.evaluation.ranks import rank
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scores import SubsetScore
from fanoise_lightning.subset import Subset

METRICS = ["hit", "ndcg_linear", "ndcg_exponential", "precision", "recall", "f1", "map", "mrr"]


def of_a_list(ranking: list[int], right: int, k: int) -> dict[str, float]:
    """The metrics of one ranked list of candidates by their textbook definitions."""
    top = ranking[:k]
    relevance = [int(candidate == right) for candidate in top]
    hits = sum(relevance)
    precision, recall = hits / k, hits / 1
    averages = [sum(relevance[: i + 1]) / (i + 1) for i in range(len(top)) if relevance[i]]
    return {
        "hit": float(hits > 0),
        "ndcg_linear": sum(gain / log2(i + 2) for i, gain in enumerate(relevance)),
        "ndcg_exponential": sum((2**gain - 1) / log2(i + 2) for i, gain in enumerate(relevance)),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "map": sum(averages) / min(1, k),
        "mrr": next((1 / (i + 1) for i, gain in enumerate(relevance) if gain), 0.0),
    }


def by_hand(scores: torch.Tensor, k: int) -> dict[str, float]:
    """The mean over queries, and over all orders of candidates with equal scores."""
    queries = []
    for row in scores.tolist():
        orders = {
            tuple(sorted(order, key=lambda candidate: -row[candidate]))
            for order in permutations(range(len(row)))
        }
        lists = [of_a_list(list(order), 0, k) for order in orders]
        queries.append({name: fmean(found[name] for found in lists) for name in METRICS})
    return {name: fmean(query[name] for query in queries) for name in METRICS}


@pytest.mark.parametrize("levels", [1000, 3, 1])
def test_every_metric_is_that_of_ranked_lists(levels: int) -> None:
    draw = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (20, 7), generator=draw) / levels  # few levels: many ties
    found = ranking_metrics(rank(scores, torch.ones(20, 1, dtype=torch.bool)))
    for k in (1, 5, 10):
        for name, value in by_hand(scores, k).items():
            assert found[f"{name}@{k}"] == pytest.approx(value, abs=1e-12), name
    assert len(found) == 3 * len(METRICS)


def test_long_lists_without_ties() -> None:
    scores = torch.rand(50, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[:, 0] = scores[:, 0] * 0.1 + 0.9  # among the first ten or so
    found = ranking_metrics(rank(scores, torch.ones(50, 1, dtype=torch.bool), atol=0))
    lists = [
        [of_a_list(row, 0, k) for row in scores.argsort(dim=1, descending=True).tolist()] for k in (1, 5, 10)
    ]
    for k, queries in zip((1, 5, 10), lists):
        for name in METRICS:
            assert found[f"{name}@{k}"] == pytest.approx(fmean(query[name] for query in queries)), name


def scored(name: str, rows: int = 4, right: int = 1, missing: int = 0) -> SubsetScore:
    is_right = torch.ones(rows, right, dtype=torch.bool)
    is_right[:missing] = False
    ranks = rank(torch.arange(rows * 5).view(rows, 5).flip(1) / 20, is_right)
    return SubsetScore.of_ranks(Subset(name, "retrieval", "IND"), ranks)


def test_the_file_has_what_the_leaderboard_reads() -> None:
    board = Scoreboard([scored("CIRR", missing=1), scored("VisDial", rows=2, missing=2)])
    file = leaderboard(board, model_name="Ours-2B", model_size=2.2)
    assert list(file["metrics"]) == ["image"]
    assert list(file["metrics"]["image"]) == ["CIRR"]  # nothing of VisDial could be scored
    cirr = file["metrics"]["image"]["CIRR"]
    assert list(cirr)[:3] == ["hit@1", "hit@5", "hit@10"]
    assert (cirr["hit@1"], cirr["num_pred"], cirr["num_data"]) == (board.subsets[0].precision, 3, 4)
    assert file["metadata"]["report_generated_date"]
    assert {name: value for name, value in file["metadata"].items() if value is not None} == {
        "model_name": "Ours-2B",
        "model_size": 2.2,
        "data_source": "Self-Reported",
        "report_generated_date": file["metadata"]["report_generated_date"],
    }


def test_several_right_answers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'CIRR' has queries with several: .* one right answer a query"):
        leaderboard(Scoreboard([scored("CIRR", right=2)]))


def test_scores_without_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="subset 'CIRR' was scored without ranks"):
        leaderboard(Scoreboard([SubsetScore("CIRR", "retrieval", "IND", 0.5, 10)]))


def test_what_the_leaderboard_would_miss_is_said() -> None:
    assert leaderboard_gaps(Scoreboard([scored(name) for name in CATALOG])) == ""
    gaps = leaderboard_gaps(Scoreboard([scored(n) for n in list(CATALOG)[1:]] + [scored("mine", missing=1)]))
    assert gaps == "it lacks ImageNet-1K; it has, beside MMEB's, mine; it skipped queries of mine"
