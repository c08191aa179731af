"""Which candidates are known to be right answers of a query, and so are no negatives of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fanoise_lightning import distributed

__all__ = ["Identities", "KnownRight"]


class Identities(NamedTuple):
    """What a loss is told of its queries and candidates: equal numbers, equal text and image.

    Queries, targets and hard negatives share one set of numbers: a target with the number of a query is the
    same as that query. -1 is like no other.

    Args:
        target_ids: (B,), integers.
        negative_ids: (M,), integers, in the order of the hard negatives.
        query_ids: (B,), integers.
        mask_pairs: (B,), bool: False where the targets of other pairs are not left out as right answers.
    """

    target_ids: Tensor | None = None
    negative_ids: Tensor | None = None
    query_ids: Tensor | None = None
    mask_pairs: Tensor | None = None

    def check(self, name: str, rows: int, negatives: int) -> None:
        """Raise ValueError if a shape or dtype does not fit to so many pairs and hard negatives."""
        for field, x in self._asdict().items():
            if x is None:
                continue
            size = negatives if field == "negative_ids" else rows
            is_flag = field == "mask_pairs"
            fits = x.dtype == torch.bool if is_flag else not (x.is_floating_point() or x.dtype == torch.bool)
            if x.shape != (size,) or not fits:
                kind = "dtype bool" if is_flag else "an integer dtype"
                raise ValueError(
                    f"{name} needs `{field}` of shape ({size},) and {kind}, "
                    f"got {tuple(x.shape)} and {x.dtype}"
                )

    @property
    def there(self) -> bool:
        """Whether any numbers are."""
        return any(x is not None for x in (self.target_ids, self.negative_ids, self.query_ids))


class KnownRight:
    """What is right in a matrix of rows with columns, of which the P pairs of all ranks tell.

    A column is right for a row if a pair has both, or what is the same. So pairs are sorted by their columns,
    and of those that have the column the ones that have the row are counted. A column that is the same as the
    row itself is no wrong answer either.

    Args:
        rows: (P,), the number of each pair's row.
        columns: (N,), the number of each column, comparable with those of the rows; the first P are those of
            the pairs. Negative numbers are like no other.
        mask_pairs: (B,), bool, for the rows of this rank: where False, the first P columns are not known to
            be right, unless they are the row itself. ``None`` if they are in all rows.
    """

    def __init__(self, rows: Tensor, columns: Tensor, mask_pairs: Tensor | None) -> None:
        self.rows, self.columns = _distinct(torch.cat([rows, columns])).split([len(rows), len(columns)])
        self.mask_pairs = mask_pairs
        ordered, order = self.columns[: len(rows)].sort()
        none = rows.new_full((1,), torch.iinfo(rows.dtype).min)
        self._ordered_rows = torch.cat([none, self.rows[order]])  # behind one that no row is like
        self._start = torch.searchsorted(ordered, self.columns)
        self._end = torch.searchsorted(ordered, self.columns, right=True)

    @classmethod
    def gather(cls, ids: Identities, rows: int, negatives: list[int], own: Tensor) -> KnownRight:
        """Gather the numbers of all ranks, for the matrix of queries with targets and hard negatives.

        Args:
            ids: those of this rank, as far as there are any.
            rows: B.
            negatives: M on each rank.
            own: (B,), which pair each row is.
        """
        largest = max(negatives)
        parts = zip((ids.query_ids, ids.target_ids, ids.negative_ids), (rows, rows, largest))
        packed = torch.cat([_filled(x, size, own) for x, size in parts])
        everyone = packed if len(negatives) == 1 else distributed.gather(packed)
        query, target, hard = everyone.view(len(negatives), -1).split([rows, rows, largest], dim=1)
        candidates = [target.flatten(), *(row[:size] for row, size in zip(hard, negatives))]
        mask_pairs = None if ids.mask_pairs is None else ids.mask_pairs.to(own.device)
        return cls(query.flatten(), torch.cat(candidates), mask_pairs)

    def reversed(self) -> KnownRight:
        """The same for the matrix of the pairs' columns with the pairs' rows."""
        return KnownRight(self.columns[: len(self.rows)], self.rows, self.mask_pairs)

    def of(self, own: Tensor, rows: slice) -> Tensor:
        """(b, N), bool: which columns are known to be right for some rows or are the same, besides their own.

        Args:
            own: (b,), which pairs these rows are.
            rows: which rows of this rank they are.
        """
        row_ids = self.rows[own, None]
        same_row = row_ids == self._ordered_rows
        before = same_row.cumsum(1, dtype=torch.int32)  # (b, 1 + P)
        start, end = (at.expand(len(own), -1) for at in (self._start, self._end))
        right = before.gather(1, start) < before.gather(1, end)
        if self.mask_pairs is not None:
            right[:, : len(self.rows)] &= self.mask_pairs[rows, None]
        right |= row_ids == self.columns
        return right.scatter_(1, own[:, None], False)


def _filled(ids: Tensor | None, size: int, like: Tensor) -> Tensor:
    """(size,), the numbers that there are, and -1 behind them."""
    ids = like[:0] if ids is None else ids.to(like)
    return torch.cat([ids, like.new_full((size - len(ids),), -1)])


def _distinct(ids: Tensor) -> Tensor:
    """The numbers, and instead of negative ones negative ones of which no two are equal."""
    return torch.where(ids < 0, -1 - torch.arange(len(ids), device=ids.device), ids)
