"""The rows of a contrastive loss on this rank, and their candidates on all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning import distributed
from fanoise_lightning.losses.known_right import Identities, KnownRight

__all__ = ["ContrastiveBatch"]


@dataclass(frozen=True, eq=False)
class ContrastiveBatch:
    """The pairs of this rank, the candidates of their queries, and which candidates to exclude.

    The logits of two ranks with two pairs each; rank 0 has one hard negative, rank 1 none. Queries 1 and 3
    are the same, so are targets 0 and 2, and the hard negative is the same as target 3. ``x`` marks a row's
    own target (:attr:`own`), ``=`` the other candidates that are right, which :meth:`mask_` excludes::

                        target 0   target 1   target 2   target 3   negative
        rank 0 query 0      x          .          =          .          .
               query 1      .          x          .          =          =
        rank 1 query 2      =          .          x          .          .
               query 3      .          =          .          x          =

    A candidate is known to be right for a query if it is the same as the target of any pair, on any rank,
    with the same query. A candidate that is the query itself is excluded too: if both directions
    of a pair are in the batch, the query of one is the target of the other. Nothing else is inferred: pairs
    are not read backwards, and if two queries share a target, the other targets of one are not taken to be
    right for the other.

    Args:
        query: (B, D), float32, of this rank.
        target: (B, D), float32, of this rank.
        candidates: (N, D), float32: the targets of all ranks, then the hard negatives of all ranks.
        own: (B,), the candidate that belongs to each row.
        known: which candidates to exclude; ``None`` if no rank has ids.
        gather: whether there are other ranks to contrast with.
    """

    query: Tensor
    target: Tensor
    candidates: Tensor
    own: Tensor
    known: KnownRight | None
    gather: bool

    @classmethod
    def build(
        cls,
        name: str,
        query: Tensor,
        target: Tensor,
        negatives: Tensor | None,
        ids: Identities,
        gather: bool,
        *,
        may_be_alone: bool = False,
    ) -> ContrastiveBatch:
        """Check the arguments of a loss and, with several ranks, gather the candidates.

        Args:
            name: the loss, for messages.
            query: (B, D).
            target: (B, D).
            negatives: (M, D); M may differ between ranks.
            ids: their ids; may be missing on some ranks.
            gather: gather over all ranks, if there are several.
            may_be_alone: accept a query whose own target is its only candidate.

        Raises:
            ValueError: if the shapes do not fit, or there is nothing to contrast with; on every rank if B
                differs between ranks, before any features are exchanged.
        """
        _check_shapes(name, query, target, negatives)
        # Unlike a new empty tensor, a slice is part of the graph: without it, the other ranks would wait for
        # this one in the backward pass.
        negatives = target[:0] if negatives is None else negatives
        ids.check(name, len(query), len(negatives))
        gather = gather and distributed.world_size() > 1
        mine = (len(query), len(negatives), int(ids.given))
        sizes = distributed.exchange(mine) if gather else [mine]
        what = f"The batch size of {name} (unless `gather=False`)"
        distributed.raise_unless_equal([size[:1] for size in sizes], what)
        if not may_be_alone:
            _check_contrast(name, len(query), sum(rows + hard for rows, hard, _ in sizes))

        query, target = query.float(), target.float()
        candidates = distributed.gather_with_grad(target) if gather else target
        counts = [hard for _, hard, _ in sizes]
        if any(counts):
            candidates = torch.cat([candidates, _gather_ragged(negatives.float(), counts)])
        own = torch.arange(len(query), device=query.device)
        if gather:
            own += len(query) * distributed.rank()
        known = None
        if any(given for _, _, given in sizes):
            known = KnownRight.gather(ids, len(query), counts, own)
        return cls(query, target, candidates, own, known, gather)

    def reversed(self) -> ContrastiveBatch:
        """The other direction: the targets of this rank, contrasted with the queries of all ranks."""
        queries = distributed.gather_with_grad(self.query) if self.gather else self.query
        known = None if self.known is None else self.known.reversed()
        return ContrastiveBatch(self.target, self.query, queries, self.own, known, self.gather)

    def cut(self, dim: int) -> ContrastiveBatch:
        """The batch with the first dimensions alone, normalised again; itself if these are all."""
        if dim == self.query.shape[1]:
            return self
        query, target, candidates = (
            F.normalize(x[:, :dim], dim=1) for x in (self.query, self.target, self.candidates)
        )
        return replace(self, query=query, target=target, candidates=candidates)

    def mask_(self, logits: Tensor, rows: slice) -> Tensor:
        """Set to minus infinity, in place, the query itself and the right answers other than its own target.

        Args:
            logits: (b, N), some rows with all candidates.
            rows: which rows of this rank they are.
        """
        if self.known is None:
            return logits
        return logits.masked_fill_(self.known.of(self.own[rows], rows), -math.inf)


def _gather_ragged(x: Tensor, sizes: list[int]) -> Tensor:
    """:func:`gather_with_grad` for ranks with different numbers of rows."""
    if len(sizes) == 1:
        return x
    largest = max(sizes)
    padded = distributed.gather_with_grad(F.pad(x, (0, 0, 0, largest - len(x))))
    if min(sizes) == largest:
        return padded
    return torch.cat([rows[:size] for rows, size in zip(padded.split(largest), sizes)])


def _check_shapes(name: str, query: Tensor, target: Tensor, negatives: Tensor | None) -> None:
    if query.ndim != 2 or query.shape != target.shape:
        raise ValueError(
            f"{name} needs `query` and `target` of the same shape (B, D), got "
            f"{tuple(query.shape)} and {tuple(target.shape)}"
        )
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != query.shape[1]):
        raise ValueError(
            f"{name} needs `negatives` of shape (M, {query.shape[1]}), got {tuple(negatives.shape)}"
        )


def _check_contrast(name: str, rows: int, candidates: int) -> None:
    if rows == 0:
        raise ValueError(f"{name} got a batch of 0 pairs")
    if candidates < 2:
        raise ValueError(
            f"{name} got a batch of {rows} without hard negatives: there is nothing to contrast with. "
            "Use a batch size of at least 2"
        )
