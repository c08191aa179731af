"""Search in a folder of embeddings: exact, and no more of it in memory than a block for each thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning._checks import check_at_least
from fanoise_lightning.search.folder import Block, EmbeddingFolder

__all__ = ["Hits", "SearchIndex"]

T = TypeVar("T")

_BLOCK = 2048  # rows that a thread reads and scores at once: they stay in the cache
_QUERIES = 1024  # that go through the catalogue together
_PAIRS = 2**14  # scored in float64 at once


class Hits(NamedTuple):
    """What was found for Q queries, K rows each, the best first.

    Args:
        scores: (Q, K) cosines, float64.
        rows: (Q, K), the numbers of the rows in the folder.
    """

    scores: Tensor
    rows: Tensor


class SearchIndex:
    """Exact search by cosine in a folder of embeddings.

    Shards are read and scored block by block in float32. Whatever rounding leaves in doubt is
    scored in float64, so the hits are those of a full sort in float64; of equal rows the lower comes first.

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

    def search(self, queries: Tensor, k: int = 10) -> Hits:
        """The rows nearest to each query.

        Args:
            queries: (Q, D), of any length.
            k: how many; all rows if there are fewer.

        Raises:
            ValueError: if the queries have another dimension than the folder, are zero or not finite, if a
                row is not finite, or if ``k`` is below 1.
        """
        check_at_least("k", k, 1)
        queries, k = self.unit(queries), min(k, len(self.folder))
        parts = [
            _keep(self._in_threads(partial(self._best, part, k)), k)
            for part in queries.split(_QUERIES)
            if k and len(part)
        ]
        shape = (len(queries), k)
        scores = torch.cat([torch.empty(0, dtype=torch.float64), *(part.score for part in parts)])
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *(part.row for part in parts)])
        return Hits(scores.view(shape), rows.view(shape))

    def ranks(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Where a full search would list one row for each query.

        Args:
            queries: (P, D), of any length.
            rows: (P,) numbers of rows.

        Returns:
            (P,) places from 1, the best, to the number of rows.

        Raises:
            ValueError: as :meth:`search`; or if there is no such row.
        """
        queries = self.unit(queries)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.folder):
            raise ValueError(f"`rows` must be from 0 to {len(self.folder) - 1}, got {rows.tolist()}")
        found = [torch.empty(0, dtype=torch.int64)]
        for part, own in zip(queries.split(_QUERIES), rows.split(_QUERIES)):
            if len(part):
                wanted = _Found(torch.arange(len(part)), own, self.score(part, own))
                counts = self._in_threads(partial(self._count_before, part, wanted))
                found.append(1 + torch.stack(counts).sum(0))
        return torch.cat(found)

    def score(self, queries: Tensor, rows: Tensor) -> Tensor:
        """The cosines (P,), float64, of P unit queries (P, D) with one row each (P,)."""
        shard = np.searchsorted(self._starts, rows.numpy(), side="right") - 1
        parts = [self._shards[s][int(row) - self._starts[s]] for s, row in zip(shard, rows)]
        vectors = torch.stack(parts) if parts else torch.empty(0, self.folder.dimension)
        return self._exact(vectors.float(), torch.arange(len(rows)), queries, torch.arange(len(rows)))

    def unit(self, queries: Tensor) -> Tensor:
        """Queries of unit length, float32, on the CPU.

        Raises:
            ValueError: if they do not fit the folder, or have no direction.
        """
        width = self.folder.dimension
        if queries.ndim != 2 or queries.shape[1] != width:
            raise ValueError(
                f"`queries` must be of shape (Q, {width}), as the embeddings in `{self.folder.path}`; got "
                f"{tuple(queries.shape)}: embed them with the model of the folder"
            )
        queries = queries.detach().cpu().float()
        wrong = (~queries.isfinite().all(1) | (queries == 0).all(1)).nonzero()
        if len(wrong):
            raise ValueError(f"query {int(wrong[0])} is zero or not finite: it has no direction")
        return F.normalize(queries, dim=1)

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
        """How far a float32 cosine may be from the exact one: the bound for any order of summation."""
        return 1.01 * self.folder.dimension * 2.0**-24 + 1e-6

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

    def _count_before(self, queries: Tensor, wanted: _Found, blocks: Iterator[Block]) -> Tensor:
        """How many rows of some blocks come before the wanted row of each query: (P,)."""
        count = torch.zeros(len(queries), dtype=torch.int64)
        own = wanted.score.float()[:, None]
        for first, rows, scores in self._scored(queries, blocks):
            count += (scores > own + self._slack).sum(1)
            query, column = ((scores - own).abs() <= self._slack).nonzero(as_tuple=True)
            exact, theirs = self._exact(rows, column, queries, query), wanted.score[query]
            before = (exact > theirs) | ((exact == theirs) & (first + column < wanted.row[query]))
            count.index_add_(0, query, before.long())
        return count

    def _scored(self, queries: Tensor, blocks: Iterator[Block]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The number of the first row, the rows (n, D) in float32, and their cosines (Q, n)."""
        normalized = self.folder.manifest["normalized"]
        # the same memory for each block: the system takes longer to give new memory than a product takes
        memory = torch.empty(_BLOCK, self.folder.dimension)
        for block in blocks:
            rows = memory[: block.shape[0]].copy_(block.read())
            scores = queries @ (rows if normalized else F.normalize(rows, dim=1)).T
            # the sum is quicker, and not finite if one of them is not
            if not scores.sum().isfinite() and not scores.isfinite().all():
                row = block.first + int((~scores.isfinite()).any(0).nonzero()[0])
                raise ValueError(
                    f"row {row} of `{self.folder.path}` is not finite: embed the catalogue again, with a "
                    "model that is not broken"
                )
            yield block.first, rows, scores

    def _exact(self, rows: Tensor, row: Tensor, queries: Tensor, query: Tensor) -> Tensor:
        """The cosines (P,), float64, of ``rows[row]`` and ``queries[query]``."""
        scores = [torch.empty(0, dtype=torch.float64)]
        for r, q in zip(row.split(_PAIRS), query.split(_PAIRS)):
            vectors = rows[r].double()
            score = (vectors * queries[q].double()).sum(1)
            if not self.folder.manifest["normalized"]:
                score = score / vectors.square().sum(1).sqrt().clamp_min(1e-12)
            scores.append(score)
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
