"""The answers to queries in one folder or two, and how good they are."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from fanoise_lightning.search.folder import EmbeddingFolder, Row
from fanoise_lightning.search.index import Hits, SearchIndex
from fanoise_lightning.search.queries import Query

__all__ = ["Answer", "Hit", "answer", "metrics", "worst_first"]

CUTOFFS = (1, 5, 10)


class Hit(NamedTuple):
    """A row of the catalogue as an answer.

    Args:
        rank: its place among all rows, from 1.
        score: the cosine.
        row: the row.
        right: whether it is known to be right.
    """

    rank: int
    score: float
    row: Row
    right: bool = False


class Answer(NamedTuple):
    """What one folder answers to one query.

    Args:
        hits: the best rows, in order.
        right: the rows that are right, by rank; none if they are not known.
    """

    hits: tuple[Hit, ...]
    right: tuple[Hit, ...] = ()

    @property
    def rank(self) -> int | None:
        """The place of the first right row; ``None`` if none is known."""
        return self.right[0].rank if self.right else None


def answer(index: SearchIndex, queries: Sequence[Query], embedded: Tensor, found: Hits) -> list[Answer]:
    """Put rows to hits, and ranks to right answers.

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
    vectors = index.unit(embedded)[asked]
    ranks, scores = index.ranks(vectors, rows), index.score(vectors, rows)
    right: list[list[tuple[int, float, int]]] = [[] for _ in queries]
    for number, *known in zip(asked, ranks.tolist(), scores.tolist(), rows.tolist()):
        right[number].append(tuple(known))
    answers = []
    for number, known in enumerate(right):
        own = {row for _, _, row in known}
        hits = zip(found.scores[number].tolist(), found.rows[number].tolist())
        answers.append(
            Answer(
                tuple(Hit(i, score, _row(index, row), row in own) for i, (score, row) in enumerate(hits, 1)),
                tuple(Hit(rank, score, _row(index, row), True) for rank, score, row in sorted(known)),
            )
        )
    return answers


def metrics(answers: Sequence[Answer]) -> dict[str, float]:
    """The means over the queries with a known right answer.

    Returns:
        ``recall@1``, ``@5`` and ``@10``, the share of a query's right answers among the first hits; ``MRR``,
        the mean of 1 / rank of the first right one; ``median rank`` of it. Empty if no right answer is known.
    """
    known = [answer.right for answer in answers if answer.right]
    if not known:
        return {}
    recall = {
        f"recall@{k}": fmean(sum(hit.rank <= k for hit in right) / len(right) for right in known)
        for k in CUTOFFS
    }
    first = [right[0].rank for right in known]
    return {**recall, "MRR": fmean(1 / rank for rank in first), "median rank": float(median(first))}


def worst_first(answers: Sequence[Answer], before: Sequence[Answer] | None = None) -> list[int]:
    """The numbers of the queries: the first right answer furthest down first, unknown ones last.

    Of equal ranks, the query comes first that was answered best before.
    """

    def key(number: int) -> tuple[int, int]:
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
