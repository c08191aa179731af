"""The ranks of a subset's queries, from the embeddings of its items.

A block of queries is compared with every item that is a candidate of any of them, in one product, and a mask
says which are candidates of which query.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from fanoise_lightning.evaluation.embedding_table import Embeddings
from fanoise_lightning.evaluation.ranks import Ranks, rank

__all__ = ["check_subset", "subset_ranks"]

_SCORES_PER_BLOCK = 2**22
# Turning an item into float64 takes about as long as its products with this many queries.
_CONVERSION = 32


def subset_ranks(
    embeddings: Embeddings,
    queries: Tensor,
    candidates: Tensor,
    name: str = "",
    warn: bool = True,
    *,
    num_right: Tensor | None = None,
    catalogue: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Ranks:
    """Rank the right answers of each query of a subset.

    A query is skipped if its own item or all of its right answers never arrived; other candidates that never
    arrived are ignored. A candidate that is listed twice counts once, as a right answer if it is one.

    Args:
        embeddings: those of the subset's items.
        queries: (Q,) the item of each query.
        candidates: (Q, C) the items of each query's candidates: right answers first, padded with -1.
        name: the subset, for messages.
        warn: whether to warn of items that never arrived.
        num_right: (Q,) how many of a query's candidates are right answers; by default 1.
        catalogue: (N,) different items that are candidates of all queries, except of a query that is that
            item; ``None`` for none.
        excluded: (Q, E) items of the catalogue that are no candidates of a query, padded with -1; ``None``
            for none.

    Returns:
        The ranks, on the CPU; a skipped query has no right answers.

    Raises:
        ValueError: if there is no query, a query or its first right answer is missing (negative), the shapes
            or dtypes do not fit, or a score is not finite.

    Example:
        >>> table = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
        >>> items = Embeddings(table, position=torch.arange(3))
        >>> subset_ranks(items, queries=torch.tensor([0]), candidates=torch.tensor([[1, 2]])).better
        tensor([[1]])
    """
    check_subset(queries, candidates, name, num_right)
    device = embeddings.rows.device
    queries, candidates = queries.to(device), candidates.to(device)
    num_right, catalogue, excluded = (
        None if part is None else part.to(device) for part in (num_right, catalogue, excluded)
    )
    arrived = embeddings.position >= 0
    right = _right_answers(candidates, num_right)
    is_right = (right >= 0) & arrived[right]  # -1 is padding, whatever it indexes
    rows = (arrived[queries] & is_right.any(dim=1)).nonzero()[:, 0]
    wanted = _mark(len(arrived), candidates, catalogue)
    if warn:
        _warn_of_missing(arrived, wanted.index_fill(0, queries, True), name, len(rows))
    left_out = queries[:, None] if excluded is None else torch.cat([queries[:, None], excluded], dim=1)
    known = _Queries(queries, candidates, left_out, right, is_right)
    if len(rows) < len(queries):  # otherwise no copy
        known = known.at(rows)
    ranks = [rank(is_right[:0].float(), is_right[:0])]  # of no query: all may be skipped
    for start, block, pool in _blocks(known, wanted, arrived, catalogue):
        scores = embeddings.cosines(block.items, pool.items)
        mask, columns = pool.mask(block, catalogue), pool.column.take(block.right)
        ranks.append(rank(scores, block.is_right, mask, name, row=start, columns=columns))
    return Ranks.cat(ranks).at(rows.cpu(), len(is_right))


def check_subset(queries: Tensor, candidates: Tensor, name: str, num_right: Tensor | None = None) -> None:
    """Raise ValueError if these are not the queries of a subset; arguments are those of `subset_ranks`."""
    if queries.ndim != 1 or candidates.ndim != 2 or len(queries) != len(candidates):
        raise ValueError(
            f"subset {name!r}: `queries` must be (Q,) and `candidates` (Q, C), got "
            f"{tuple(queries.shape)} and {tuple(candidates.shape)}"
        )
    if (got := {queries.dtype, candidates.dtype}) != {torch.int64}:
        raise ValueError(
            f"subset {name!r}: `queries` and `candidates` must be numbers of items, torch.int64, got "
            f"{', '.join(sorted(map(str, got)))}"
        )
    if candidates.numel() == 0:
        raise ValueError(f"subset {name!r} has no queries or no candidates: omit it")
    if (lowest := int(candidates.min())) < -1:
        raise ValueError(f"subset {name!r}: `candidates` has the item {lowest}; padding must be -1")
    incomplete = (queries < 0) | (candidates[:, 0] < 0)
    if incomplete.any():
        row = int(incomplete.nonzero()[0])
        raise ValueError(f"subset {name!r}: row {row} has no query or no ground truth (-1): omit it")
    if num_right is not None:
        if num_right.shape != queries.shape:
            raise ValueError(
                f"subset {name!r}: `num_right` must be (Q,) = {tuple(queries.shape)}, got "
                f"{tuple(num_right.shape)}"
            )
        listed = (candidates >= 0).sum(dim=1)
        wrong = (num_right < 1) | (num_right > listed)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"subset {name!r}: row {row} has {int(num_right[row])} right answers among its "
                f"{int(listed[row])} candidates; expected 1 or more, first among the candidates"
            )


def _right_answers(candidates: Tensor, num_right: Tensor | None) -> Tensor:
    """(Q, R): the right answers of each query, each once, with -1 in place of the others."""
    if num_right is None:
        return candidates[:, :1]
    right = candidates[:, : int(num_right.max())]
    right = right.masked_fill(torch.arange(right.shape[1], device=right.device) >= num_right[:, None], -1)
    ordered, order = right.sort(dim=1, stable=True)
    repeated = torch.zeros_like(right, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return right.masked_fill(torch.zeros_like(repeated).scatter(1, order, repeated), -1)


def _mark(num_items: int, *groups: Tensor | None) -> Tensor:
    """(N + 1,) bool: which of N items are in any of the groups; the last place is that of padding, -1."""
    device = next(group.device for group in groups if group is not None)
    marked = torch.zeros(num_items + 1, dtype=torch.bool, device=device)
    for group in groups:
        if group is not None:
            marked.index_fill_(0, group.flatten(), True)
    return marked


class _Queries(NamedTuple):
    """Q queries; all of their items are padded with -1.

    Args:
        items: (Q,) their own.
        candidates: (Q, C)
        left_out: (Q, E) of the catalogue, no candidates of the query unless it lists them itself.
        right: (Q, R) the right answers.
        is_right: (Q, R) bool, which of these arrived.
    """

    items: Tensor
    candidates: Tensor
    left_out: Tensor
    right: Tensor
    is_right: Tensor

    def at(self, rows: Tensor | slice) -> _Queries:
        return _Queries(*(part[rows] for part in self))


@dataclass(frozen=True)
class _Pool:
    """The items that a block of queries is compared with.

    Args:
        items: (U,), each once.
        column: (N + 1,), the place of each of N items among them, U for other items and for padding, -1.
    """

    items: Tensor
    column: Tensor

    @classmethod
    def of(cls, wanted: Tensor, arrived: Tensor) -> _Pool:
        """Those `wanted`, (N + 1,) as `_mark` returns it, that `arrived`, (N,)."""
        items = (wanted[:-1] & arrived).nonzero()[:, 0]
        column = torch.full((len(wanted),), len(items), device=items.device)
        column[items] = torch.arange(len(items), device=items.device)
        return cls(items, column)

    def mask(self, queries: _Queries, catalogue: Tensor | None) -> Tensor:
        """(Q, U) bool: which items are candidates of each query."""
        shape = len(queries.items), len(self.items) + 1
        mask = torch.zeros(shape, dtype=torch.bool, device=self.items.device)
        if catalogue is not None:
            mask[:, self.column.take(catalogue)] = True
            mask.scatter_(1, self.column.take(queries.left_out), False)
        return mask.scatter_(1, self.column.take(queries.candidates), True)[:, :-1]


def _blocks(
    queries: _Queries, wanted: Tensor, arrived: Tensor, catalogue: Tensor | None
) -> Iterator[tuple[int, _Queries, _Pool]]:
    """Blocks of queries, the number of their first, and the items that each block is compared with.

    With few items, all blocks are compared with all of them. With many, each block is small and is compared
    with its own alone: most time then goes into turning these into float64. With few candidates a query, it
    goes into finding them among all items, and a block has about as many scores as there are items.
    """
    pool = _Pool.of(wanted, arrived)
    num_candidates = queries.candidates.shape[1] + (0 if catalogue is None else len(catalogue))
    shared = len(pool.items) <= _CONVERSION * num_candidates
    if shared:
        size = max(2 * _CONVERSION, _SCORES_PER_BLOCK // max(1, len(pool.items)))
    else:
        size = max(_CONVERSION // 4, math.isqrt(len(arrived) // num_candidates))
    for start in range(0, len(queries.items), size):
        block = queries.at(slice(start, start + size))
        if not shared:
            pool = _Pool.of(_mark(len(arrived), block.candidates, catalogue), arrived)
        yield start, block, pool


def _warn_of_missing(arrived: Tensor, wanted: Tensor, name: str, num_scored: int) -> None:
    missing = int((wanted[:-1] & ~arrived).sum())
    if missing:
        what = "with fewer distractors its score is too high"
        if not num_scored:
            what = "no query has both an embedding and a right answer with one, so that it has no score"
        rank_zero_warn(
            f"subset {name!r}: {missing} of {int(wanted[:-1].sum())} texts and images have no embedding "
            f"(broken images, or a limited number of batches): {what}"
        )
