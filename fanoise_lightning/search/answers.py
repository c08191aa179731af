"""The answers to queries in one folder or two, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fanoise_lightning.evaluation.ranks import Ranks
from fanoise_lightning.evaluation.retrieval_metrics import retrieval_metrics
from fanoise_lightning.search.folder import EmbeddingFolder, Row
from fanoise_lightning.search.index import Hits, SearchIndex
from fanoise_lightning.search.queries import Query

__all__ = ["Answer", "Hit", "Right", "answer", "metrics", "worst_first"]

_METRICS = {
    "recall@1": "recall_at_1",
    "recall@5": "recall_at_5",
    "recall@10": "recall_at_10",
    "MRR": "mrr",
    "median rank": "median_rank",
}


class Hit(NamedTuple):
    """A row of the catalogue as an answer.

    Args:
        rank: its place in the list, from 1.
        score: the cosine.
        row: the row.
        right: whether it is known to be right.
    """

    rank: int
    score: float
    row: Row
    right: bool = False


class Right(NamedTuple):
    """A row that is right, and where it is among all rows.

    Args:
        better: how many are before it and all that tie with it.
        tied: how many tie with it, itself included.
        score: the cosine.
        row: the row.
    """

    better: int
    tied: int
    score: float
    row: Row

    @property
    def rank(self) -> float:
        """Its place from 1, on average over the orders of the tied."""
        return self.better + (self.tied + 1) / 2


class Answer(NamedTuple):
    """What one folder answers to one query.

    Args:
        hits: the best rows, in order.
        right: the rows that are right, the best first; none if they are not known.
        first_tied: how many of these tie for being the first.
    """

    hits: tuple[Hit, ...]
    right: tuple[Right, ...] = ()
    first_tied: int = 1

    @property
    def rank(self) -> float | None:
        """The place of the first right row, on average over the orders of the tied; ``None`` without one."""
        if not self.right:
            return None
        return self.right[0].better + (self.right[0].tied + 1) / (self.first_tied + 1)


def answer(index: SearchIndex, queries: Sequence[Query], embedded: Tensor, found: Hits) -> list[Answer]:
    """Put rows to hits, and places to right answers.

    Args:
        index: the folder that was searched.
        queries: the queries.
        embedded: their embeddings (Q, D).
        found: their hits.

    Raises:
        ValueError: if a right answer is not in the folder.
    """
    asked = [number for number, query in enumerate(queries) for _ in query.right]
    rows = _rows_of([id for query in queries for id in query.right], asked, index.folder)
    places = index.ranks(torch.as_tensor(embedded)[asked], rows)
    right: list[list[tuple[int, int, float, float, int]]] = [[] for _ in queries]
    for number, place in zip(asked, zip(*(column.tolist() for column in (*places, rows)))):
        right[number].append(place)
    answers = []
    for number, known in enumerate(right):
        known.sort(key=lambda place: (place[0], -place[2]))
        own = {row for *_, row in known}
        hits = zip(found.scores[number].tolist(), found.rows[number].tolist())
        answers.append(
            Answer(
                tuple(Hit(i, score, _row(index, row), row in own) for i, (score, row) in enumerate(hits, 1)),
                tuple(Right(better, tied, score, _row(index, row)) for better, tied, score, _, row in known),
                sum(score >= known[0][3] for _, _, score, _, _ in known),
            )
        )
    return answers


def metrics(answers: Sequence[Answer]) -> dict[str, float]:
    """The metrics of the scoreboard over the queries with a known right answer; ties count as there.

    Returns:
        ``recall@1``, ``@5`` and ``@10``, the share of a query's right answers among the first hits; ``MRR``,
        the mean of 1 / rank of the first right one; ``median rank`` of it. Empty if no right answer is known.
    """
    known = [answer for answer in answers if answer.right]
    if not known:
        return {}

    def column(value: Callable[[Right], int], filler: int) -> Tensor:  # (Q, R)
        rows = [torch.tensor([value(right) for right in answer.right]) for answer in known]
        return pad_sequence(rows, batch_first=True, padding_value=filler)

    ranks = Ranks(
        is_right=column(lambda right: 1, 0).bool(),
        better=column(lambda right: right.better, 0),
        tied=column(lambda right: right.tied, 1),
        first_tied=torch.tensor([answer.first_tied for answer in known]),
        num_candidates=torch.zeros(len(known), dtype=torch.int64),  # for chance, which is not asked for
    )
    values = [metric.value(ranks) for metric in retrieval_metrics(_METRICS.values())]
    return dict(zip(_METRICS, values))


def worst_first(answers: Sequence[Answer], before: Sequence[Answer] | None = None) -> list[int]:
    """The numbers of the queries: the first right answer furthest down first, unknown ones last.

    Of equal ranks, the query comes first that was answered best before.
    """

    def key(number: int) -> tuple[float, float]:
        earlier = before[number].rank if before else None
        return -(answers[number].rank or 0), earlier or 0

    return sorted(range(len(answers)), key=key)


def _row(index: SearchIndex, number: int) -> Row:
    return Row(**index.folder.columns.slice(number, 1).to_pylist()[0])


def _rows_of(ids: Sequence[str], queries: Sequence[int], folder: EmbeddingFolder) -> Tensor:
    """The numbers of the rows with these ids."""
    known = folder.columns["id"].combine_chunks() if ids else pa.array([], pa.large_string())
    rows = pc.index_in(pa.array(ids, pa.large_string()), known)
    if rows.null_count:
        first = pc.index(rows.is_null(), True).as_py()
        raise ValueError(
            f"the right answer {ids[first]!r} of query {queries[first]} is not an id in `{folder.path}`"
        )
    return torch.tensor(rows.to_pylist(), dtype=torch.int64)
