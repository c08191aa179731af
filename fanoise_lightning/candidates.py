"""The rows of a contrastive loss on this rank, and their candidates on all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning import distributed

__all__ = ["ContrastiveBatch"]


@dataclass(frozen=True, eq=False)
class ContrastiveBatch:
    """Pairs of this rank, what their queries are contrasted with, and what they are not contrasted with.

    The logits of two ranks with two pairs each; rank 0 holds one hard negative, rank 1 none. ``x`` marks the
    column of a row's own target (:attr:`own`), ``=`` another pair with the same target, left out by
    :meth:`mask_`::

                      target 0   target 1   target 2   target 3   negative
        rank 0 query 0    x          .          =          .          .
               query 1    .          x          .          .          .
        rank 1 query 2    =          .          x          .          .
               query 3    .          .          .          x          .

    Args:
        query: (B, D), float32, of this rank.
        target: (B, D), float32, of this rank.
        candidates: (N, D), float32: the targets of all ranks, then the hard negatives of all ranks.
        own: (B,), which candidate belongs to each row.
        ids: (B,), the target's number in each row; ``None`` if no rank has any.
        all_ids: (W * B,), those of all ranks, -1 for none; ``None`` if no rank has any.
        gather: whether there are other ranks to contrast with.
    """

    query: Tensor
    target: Tensor
    candidates: Tensor
    own: Tensor
    ids: Tensor | None
    all_ids: Tensor | None
    gather: bool

    @classmethod
    def build(
        cls,
        name: str,
        query: Tensor,
        target: Tensor,
        negatives: Tensor | None,
        target_ids: Tensor | None,
        gather: bool,
    ) -> ContrastiveBatch:
        """Check the arguments of a loss and, over several ranks, gather the candidates.

        Args:
            name: of the loss, for messages.
            query: (B, D).
            target: (B, D).
            negatives: (M, D); M may differ between ranks.
            target_ids: (B,), integers; may be missing on some ranks.
            gather: over all ranks, if there are several.

        Raises:
            ValueError: if the shapes do not fit, or there is nothing to contrast with; on every rank if B is
                not the same on all of them, before anything else is exchanged.
        """
        _check_shapes(name, query, target, negatives, target_ids)
        # Where there are none they must still be part of the graph, as zeros would not: the other ranks would
        # wait for this one in the backward pass.
        negatives = target[:0] if negatives is None else negatives
        gather = gather and distributed.world_size() > 1
        mine = (len(query), len(negatives), int(target_ids is not None))
        sizes = distributed.exchange(mine) if gather else [mine]
        what = f"The batch size of {name} (unless `gather=False`)"
        distributed.raise_unless_equal([size[:1] for size in sizes], what)
        _check_contrast(name, len(query), sum(rows + hard for rows, hard, _ in sizes))

        query, target = query.float(), target.float()
        candidates = distributed.gather_with_grad(target) if gather else target
        if any(hard for _, hard, _ in sizes):
            hard = _gather_ragged(negatives.float(), [hard for _, hard, _ in sizes])
            candidates = torch.cat([candidates, hard])
        own = torch.arange(len(query), device=query.device)
        if gather:
            own += len(query) * distributed.rank()
        ids = all_ids = None
        if any(has_ids for _, _, has_ids in sizes):
            ids = own.new_full(own.shape, -1) if target_ids is None else target_ids.to(own)
            all_ids = distributed.gather(ids) if gather else ids
        return cls(query, target, candidates, own, ids, all_ids, gather)

    def all_queries(self) -> Tensor:
        """The queries of all ranks, (W * B, D): the candidates of targets."""
        return distributed.gather_with_grad(self.query) if self.gather else self.query

    def mask_(self, logits: Tensor, rows: slice) -> Tensor:
        """Leave other pairs with the same target out: their logits become minus infinity, in place.

        Args:
            logits: (b, N), of some rows with all candidates, or with the queries of all ranks.
            rows: which rows of this rank these are.
        """
        if self.ids is None or self.all_ids is None:
            return logits
        ids = self.ids[rows, None]
        columns = F.pad(self.all_ids, (0, logits.shape[1] - len(self.all_ids)), value=-1)  # hard negatives
        same = (ids == columns).logical_and_(ids >= 0).scatter_(1, self.own[rows, None], False)
        return logits.masked_fill_(same, -math.inf)


def _gather_ragged(x: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all ranks with its gradient, as :func:`gather_with_grad`, where their numbers differ."""
    if len(sizes) == 1:
        return x
    largest = max(sizes)
    padded = distributed.gather_with_grad(F.pad(x, (0, 0, 0, largest - len(x))))
    if min(sizes) == largest:
        return padded
    return torch.cat([rows[:size] for rows, size in zip(padded.split(largest), sizes)])


def _check_shapes(
    name: str, query: Tensor, target: Tensor, negatives: Tensor | None, target_ids: Tensor | None
) -> None:
    if query.ndim != 2 or query.shape != target.shape:
        raise ValueError(
            f"{name} needs `query` and `target` of the same shape (B, D), got "
            f"{tuple(query.shape)} and {tuple(target.shape)}"
        )
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != query.shape[1]):
        raise ValueError(
            f"{name} needs `negatives` of shape (M, {query.shape[1]}), got {tuple(negatives.shape)}"
        )
    if target_ids is not None and (target_ids.shape != query.shape[:1] or target_ids.is_floating_point()):
        raise ValueError(
            f"{name} needs `target_ids` of shape ({len(query)},) and an integer dtype, got "
            f"{tuple(target_ids.shape)} and {target_ids.dtype}"
        )


def _check_contrast(name: str, rows: int, candidates: int) -> None:
    if rows == 0:
        raise ValueError(f"{name} got a batch of 0 pairs")
    if candidates < 2:
        raise ValueError(
            f"{name} got a batch of {rows} without hard negatives: there is nothing to contrast with. "
            "Use a batch size of at least 2"
        )
