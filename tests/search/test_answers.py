"""Answers to queries: ties count on the page of a search what they count on the scoreboard."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median

import pytest
import torch
from search.folders import unit, write_folder

from fanoise_lightning.evaluation.ranks import rank
from fanoise_lightning.evaluation.retrieval_metrics import retrieval_metrics
from fanoise_lightning.search.answers import answer, metrics
from fanoise_lightning.search.index import SearchIndex
from fanoise_lightning.search.queries import Query

NAMES = ["recall_at_1", "recall_at_5", "recall_at_10", "mrr", "median_rank"]


def test_a_collapsed_model_scores_chance(tmp_path: Path) -> None:
    index = SearchIndex(write_folder(tmp_path, unit(1, 8).expand(50, 8), [50]))
    queries = [Query(f"query {row}", None, (f"item-{row}",)) for row in range(5)]
    embedded = unit(5, 8, seed=1)
    found = metrics(answer(index, queries, embedded, index.search(embedded)))
    places = range(1, 51)  # each is equally likely
    assert found["recall@1"] == pytest.approx(1 / 50)
    assert found["recall@5"] == pytest.approx(5 / 50)
    assert found["recall@10"] == pytest.approx(10 / 50)
    assert found["MRR"] == pytest.approx(fmean(1 / place for place in places))
    assert found["median rank"] == median(places)


@pytest.mark.parametrize("noise", [0, 3e-7, 1])
def test_the_numbers_are_those_of_the_scoreboard(noise: float, tmp_path: Path) -> None:
    """Of equal rows, nearly equal ones and different ones, with one right answer or several."""
    draw = torch.Generator().manual_seed(0)
    rows = unit(6, 8)[torch.randint(6, (40,), generator=draw)] + noise * torch.randn(40, 8, generator=draw)
    rows = torch.nn.functional.normalize(rows, dim=1)
    embedded = unit(12, 8, seed=1)
    right = [torch.randperm(40, generator=draw)[: 1 + query % 3] for query in range(12)]
    index = SearchIndex(write_folder(tmp_path, rows, [30, 10]))
    queries = [Query(f"query {q}", None, tuple(f"item-{row}" for row in own)) for q, own in enumerate(right)]
    answers = answer(index, queries, embedded, index.search(embedded))
    scores, is_right = (
        torch.full((12, 43), -torch.inf, dtype=torch.float64),
        torch.zeros(12, 3, dtype=torch.bool),
    )
    for query, own in enumerate(right):  # the board has right answers first
        others = [row for row in range(40) if row not in own]
        every = embedded[query].double() @ rows.double().T
        scores[query, : len(own)] = every[own]
        scores[query, 3 : 3 + len(others)] = every[others]
        is_right[query, : len(own)] = True
    board = rank(scores, is_right, scores > -torch.inf)
    expected = [metric.value(board) for metric in retrieval_metrics(NAMES)]
    assert list(metrics(answers).values()) == pytest.approx(expected)
    first = retrieval_metrics(["median_rank"])[0].per_query(board)
    assert [found.rank for found in answers] == first.tolist()


def test_hits_and_right_answers_have_their_rows(tmp_path: Path) -> None:
    rows = torch.eye(4)
    index = SearchIndex(write_folder(tmp_path, rows, [4]))
    embedded = torch.tensor([[4.0, 3, 2, 1]])
    queries = [Query("a", None, ("item-3", "item-1"))]
    (found,) = answer(index, queries, embedded, index.search(embedded, 3))
    assert [(hit.rank, hit.row.id, hit.right) for hit in found.hits] == [
        (1, "item-0", False),
        (2, "item-1", True),
        (3, "item-2", False),
    ]
    assert [(known.rank, known.row.id) for known in found.right] == [(2, "item-1"), (4, "item-3")]
    assert [known.score for known in found.right] == pytest.approx([3 / 30**0.5, 1 / 30**0.5])
    with pytest.raises(ValueError, match=r"the right answer 'item-9' of query 0 is not an id in"):
        answer(index, [Query("a", None, ("item-9",))], embedded, index.search(embedded))
