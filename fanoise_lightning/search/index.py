"""Search in a folder of embeddings: exact, and no more of it in memory than a block for each thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning._checks import check_at_least
from fanoise_lightning.evaluation.embedding_table import UNIT
from fanoise_lightning.evaluation.ties import TIE
from fanoise_lightning.search.folder import Block, EmbeddingFolder

__all__ = ["Hits", "Places", "SearchIndex"]

T = TypeVar("T")

_BLOCK = 2048  # rows that a thread reads and scores at once: they stay in the cache
_QUERIES = 1024  # that go through the catalogue together
_PAIRS = 2**14  # scored in float64 at once


class Hits(NamedTuple):
    """What was found for Q queries, K rows each, the best first.

    Args:
        scores: (Q, K) cosines, float64; (K,) for a single query.
        rows: (Q, K), the numbers of the rows in the folder; (K,) for a single query.
    """

    scores: Tensor
    rows: Tensor


class Places(NamedTuple):
    """Where P rows are among all rows, each for a query of its own; near-equal scores tie as in evaluation.

    Args:
        better: (P,) int64, how many rows are before the row and all that tie with it.
        tied: (P,) int64, how many tie with it, itself included.
        scores: (P,) float64, its cosine.
        lowest: (P,) float64, the lowest cosine that ties.
    """

    better: Tensor
    tied: Tensor
    scores: Tensor
    lowest: Tensor


class SearchIndex:
    """Exact search by cosine in a folder of embeddings.

    Shards are read and scored block by block in float32. Whatever rounding leaves in doubt is
    scored in float64, so the hits are those of a full sort in float64; of equal rows the lower comes first.
    Scores are cosines of the rows as they are stored: float16 leaves their lengths a little off 1.

    Args:
        folder: what ``fanoise embed`` wrote.

    Raises:
        FileNotFoundError: if it is no such folder, or an unfinished one.
        ValueError: if a part of it is damaged.

    Example:
        >>> index = SearchIndex("index")                                       # doctest: +SKIP
        >>> scores, rows = index.search(module.encode(["a red mug"]), k=5)     # doctest: +SKIP
        >>> index.folder.row(int(rows[0, 0])).id                               # doctest: +SKIP
        'mug-17'
    """

    def __init__(self, folder: EmbeddingFolder | str | Path) -> None:
        self.folder = folder if isinstance(folder, EmbeddingFolder) else EmbeddingFolder(folder)

    def __repr__(self) -> str:
        return f"SearchIndex({self.folder!r})"

    def search(self, queries: Any, k: int = 10) -> Hits:
        """The rows nearest to each query.

        Args:
            queries: (Q, D), a tensor or an array, of any length; or (D,), a single one.
            k: how many; all rows if there are fewer.

        Raises:
            TypeError: if the queries are no numbers, such as texts that were not embedded.
            ValueError: if the queries have another dimension than the folder, are zero or not finite, if a
                row is not of unit length, or if ``k`` is below 1.
        """
        check_at_least("k", k, 1)
        unit, k = self.unit(queries), min(k, len(self.folder))
        parts = [
            _keep(self._in_threads(partial(self._best, part, k)), k)
            for part in unit.view(-1, self.folder.dimension).split(_QUERIES)
            if k and len(part)
        ]
        shape = (*unit.shape[:-1], k)
        scores = torch.cat([torch.empty(0, dtype=torch.float64), *(part.score for part in parts)])
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *(part.row for part in parts)])
        return Hits(scores.view(shape), rows.view(shape))

    def ranks(self, queries: Any, rows: Tensor) -> Places:
        """Where one row for each query is among all rows.

        Args:
            queries: (P, D), as of :meth:`search`.
            rows: (P,) numbers of rows.

        Raises:
            TypeError: as :meth:`search`.
            ValueError: as :meth:`search`; if there is no such row, or not one for each query.
        """
        queries = self.unit(queries).view(-1, self.folder.dimension)
        if rows.shape != queries.shape[:1]:
            raise ValueError(f"`rows` must be ({len(queries)},), one for each query, got {tuple(rows.shape)}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.folder):
            raise ValueError(f"`rows` must be from 0 to {len(self.folder) - 1}, got {rows.tolist()}")
        found = [Places(*(torch.empty(0, dtype=d) for d in (torch.int64,) * 2 + (torch.float64,) * 2))]
        found += map(self._places, queries.split(_QUERIES), self.score(queries, rows).split(_QUERIES))
        return Places(*map(torch.cat, zip(*found)))

    def score(self, queries: Tensor, rows: Tensor) -> Tensor:
        """The cosines (P,), float64, of P unit queries (P, D) with one row each (P,)."""
        shard = np.searchsorted(self._starts, rows.numpy(), side="right") - 1
        parts = [self._shards[s][int(row) - self._starts[s]] for s, row in zip(shard, rows)]
        vectors = torch.stack(parts) if parts else torch.empty(0, self.folder.dimension)
        return self._exact(vectors.float(), torch.arange(len(rows)), queries, torch.arange(len(rows)))

    def unit(self, queries: Any) -> Tensor:
        """Queries (Q, D) or (D,) of unit length, float32, on the CPU.

        Raises:
            TypeError: if they are no numbers.
            ValueError: if they do not fit the folder, or have no direction.
        """
        try:
            vectors = torch.as_tensor(queries).detach().cpu().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"`queries` must be embeddings (Q, {self.folder.dimension}), a tensor or an array, got "
                f"{type(queries).__name__}: embed it first with `module.encode`"
            ) from error
        width = self.folder.dimension
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != width:
            raise ValueError(
                f"`queries` must be of shape (Q, {width}) or ({width},), as the embeddings in "
                f"`{self.folder.path}`; got {tuple(vectors.shape)}: embed them with the model of the folder"
            )
        largest = vectors.abs().amax(-1, keepdim=True)
        wrong = (~(largest.isfinite() & (largest > 0))).view(-1).nonzero()
        if len(wrong):
            raise ValueError(f"query {int(wrong[0])} is zero or not finite: it has no direction")
        # the squares of large or small numbers would overflow or vanish
        return F.normalize(vectors / largest, dim=-1).float()

    @cached_property
    def _shards(self) -> list[Tensor]:
        return list(self.folder.shards())

    @cached_property
    def _blocks(self) -> list[Block]:
        return self.folder.blocks(_BLOCK)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(map(len, self._shards))]

    @property
    def _slack(self) -> float:
        """How far a float32 cosine may be from the exact one: the bound for any order of summation.

        Once for the product, and half of it for the length, which is a square root.
        """
        return 1.6 * self.folder.dimension * 2.0**-24 + 1e-6

    def _in_threads(self, work: Callable[[Iterator[Block]], T]) -> list[T]:
        """What each thread makes of the blocks that it takes."""
        blocks = iter(self._blocks)
        with _one_thread_each() as threads, ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, [blocks] * threads))

    def _best(self, queries: Tensor, k: int, blocks: Iterator[Block]) -> _Found:
        """The k best rows of some blocks for each query."""
        best = _Found(*(torch.empty(0, dtype=dtype) for dtype in (torch.int64, torch.int64, torch.float64)))
        floor = torch.full((len(queries),), -torch.inf)  # the cosine of the k best is not below it
        for first, rows, scores in self._scored(queries, blocks):
            if floor[0].isinf() and scores.shape[1] >= k:
                floor = scores.topk(k).values[:, -1] - self._slack
            hopeful = (scores.amax(1) >= floor - self._slack).nonzero()[:, 0]
            if len(hopeful):
                wanted = floor[hopeful, None] - self._slack
                query, column = (scores[hopeful] >= wanted).nonzero(as_tuple=True)
                query = hopeful[query]
                exact = self._exact(rows, column, queries, query)
                best = _keep([best, _Found(query, first + column, exact)], k)
                if len(best.row) == k * len(queries):
                    floor = floor.maximum(best.score.view(-1, k)[:, -1].float())
        return best

    def _places(self, queries: Tensor, scores: Tensor) -> Places:
        """The places of the rows with these cosines (P,), each for a query (P, D).

        As in evaluation, a tie reaches down from its best score: the best that is not before the row.
        """
        lowest = scores - TIE
        better, tied, best = self._count(queries, scores, lowest)
        higher = (best - TIE > lowest).nonzero()[:, 0]
        if len(higher):
            lowest[higher] = best[higher] - TIE
            tied[higher] = self._count(queries[higher], scores[higher], lowest[higher])[1]
        return Places(better, tied, scores, lowest)

    def _count(self, queries: Tensor, own: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of all rows, each (P,): how many are better than `own` and all that tie with it; how many of the
        others are not below `lowest`; and the best of these others.
        """
        if not len(queries):
            return own.long(), own.long(), own
        parts = self._in_threads(partial(self._count_in, queries, own, lowest))
        better, tied, best = map(torch.stack, zip(*parts))
        return better.sum(0), tied.sum(0), best.amax(0)

    def _count_in(
        self, queries: Tensor, own: Tensor, lowest: Tensor, blocks: Iterator[Block]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same of some blocks."""
        better, tied = (torch.zeros(len(queries), dtype=torch.int64) for _ in range(2))
        best, rounded, doubt = own.clone(), own.float()[:, None], TIE + self._slack
        for _, rows, scores in self._scored(queries, blocks):
            distance = scores - rounded
            better += (distance > doubt).sum(1)
            query, column = (distance.abs() <= doubt).nonzero(as_tuple=True)
            exact = self._exact(rows, column, queries, query)
            before = exact > own[query] + TIE
            better.index_add_(0, query, before.long())
            tied.index_add_(0, query, (~before & (exact >= lowest[query])).long())
            best.scatter_reduce_(0, query[~before], exact[~before], "amax")
        return better, tied, best

    def _scored(self, queries: Tensor, blocks: Iterator[Block]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The number of the first row, the rows (n, D) in float32, and their cosines (Q, n)."""
        # the same memory for each block: the system takes longer to give new memory than a product takes
        memory = torch.empty(_BLOCK, self.folder.dimension)
        for block in blocks:
            rows = memory[: block.shape[0]].copy_(block.read())
            lengths = torch.linalg.vector_norm(rows, dim=1)
            wrong = (~((lengths - 1).abs() < UNIT)).nonzero()  # NaN is wrong, too
            if len(wrong):
                row = int(wrong[0])
                raise ValueError(
                    f"row {block.first + row} of `{self.folder.path}` has the length {lengths[row]:.4g}, "
                    "not 1: embed the catalogue again, with a model that is not broken"
                )
            yield block.first, rows, (queries @ rows.T).div_(lengths)

    def _exact(self, rows: Tensor, row: Tensor, queries: Tensor, query: Tensor) -> Tensor:
        """The cosines (P,), float64, of ``rows[row]`` and ``queries[query]``."""
        scores = [torch.empty(0, dtype=torch.float64)]
        for r, q in zip(row.split(_PAIRS), query.split(_PAIRS)):
            vectors = rows[r].double()
            lengths = torch.linalg.vector_norm(vectors, dim=1).clamp_min(1e-12)
            scores.append((vectors * queries[q].double()).sum(1) / lengths)
        return torch.cat(scores)


class _Found(NamedTuple):
    """P pairs of a query and a row, with their cosine: each (P,)."""

    query: Tensor
    row: Tensor
    score: Tensor


def _keep(parts: list[_Found], k: int) -> _Found:
    """The k best of each query, ordered by query, then by score, then by row."""
    found = _Found(*map(torch.cat, zip(*parts)))
    order = torch.from_numpy(np.lexsort((found.row, -found.score, found.query)))
    query = found.query[order]
    place = torch.arange(len(query)) - torch.searchsorted(query, query)
    return _Found(*(column[order[place < k]] for column in found))


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """For this many threads with blocks of their own: those inside a product would wait for each other."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")  # the bound on rounding is that of float32
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
