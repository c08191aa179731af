"""Which candidates are known to be right answers to a query, and so are not its negatives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fanoise_lightning import distributed

__all__ = ["Identities", "KnownRight"]


class Identities(NamedTuple):
    """The ids of the queries and candidates of a loss: the same id means the same text and image.

    Queries, targets and hard negatives share one set of ids: a target with the id of a query is the same as
    that query. -1 equals no other id.

    Args:
        target_ids: (B,), integers.
        negative_ids: (M,), integers, in the order of the hard negatives.
        query_ids: (B,), integers.
        mask_pairs: (B,), bool: False where targets of other pairs stay negatives even if they are right.
    """

    target_ids: Tensor | None = None
    negative_ids: Tensor | None = None
    query_ids: Tensor | None = None
    mask_pairs: Tensor | None = None

    def check(self, name: str, rows: int, negatives: int) -> None:
        """Raise ValueError if a shape or dtype does not fit this many pairs and hard negatives."""
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
    def given(self) -> bool:
        """Whether there are any ids."""
        return any(x is not None for x in (self.target_ids, self.negative_ids, self.query_ids))


class KnownRight:
    """Which entries of a matrix of rows by columns are right, according to the P pairs of all ranks.

    A column is right for a row if some pair has the same row and the same column. So pairs are sorted by
    column, and among those with the column, the ones with the row are counted. A column that is the same as
    the row itself is not a wrong answer either.

    Args:
        rows: (P,), the id of each pair's row.
        columns: (N,), the id of each column, comparable with the ids of rows; the first P are those of the
            pairs. Negative ids equal no other.
        mask_pairs: (B,), bool, for the rows of this rank: where False, the first P columns are not taken to
            be right, unless they are the row itself. ``None`` stands for True everywhere.
    """

    def __init__(self, rows: Tensor, columns: Tensor, mask_pairs: Tensor | None) -> None:
        self.rows, self.columns = _distinct(torch.cat([rows, columns])).split([len(rows), len(columns)])
        self.mask_pairs = mask_pairs
        ordered, order = self.columns[: len(rows)].sort()
        none = rows.new_full((1,), torch.iinfo(rows.dtype).min)
        self._ordered_rows = torch.cat([none, self.rows[order]])  # after one that equals no row
        self._start = torch.searchsorted(ordered, self.columns)
        self._end = torch.searchsorted(ordered, self.columns, right=True)

    @classmethod
    def gather(cls, ids: Identities, rows: int, negatives: list[int], own: Tensor) -> KnownRight:
        """Gather the ids of all ranks, for the matrix of queries by targets and hard negatives.

        Args:
            ids: those of this rank, which may be missing.
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
        """The same for the transposed matrix: the pairs' columns by the pairs' rows."""
        return KnownRight(self.columns[: len(self.rows)], self.rows, self.mask_pairs)

    def of(self, own: Tensor, rows: slice) -> Tensor:
        """(b, N), bool: for some rows, which columns are right or the row itself, other than their own.

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
    """(size,), the ids that there are, padded with -1."""
    ids = like[:0] if ids is None else ids.to(like)
    return torch.cat([ids, like.new_full((size - len(ids),), -1)])


def _distinct(ids: Tensor) -> Tensor:
    """The ids, with the negative ones replaced by distinct negative ones."""
    return torch.where(ids < 0, -1 - torch.arange(len(ids), device=ids.device), ids)
