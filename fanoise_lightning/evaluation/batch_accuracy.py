"""How many queries of a training batch find their target: the same candidates as the loss's, and ties as in
:func:`~fanoise_lightning.metrics.precision_at_one`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fanoise_lightning.evaluation.precision_at_one import TIE, share_won
from fanoise_lightning.losses.candidates import ContrastiveBatch
from fanoise_lightning.losses.known_right import Identities
from fanoise_lightning.losses.tiled import MAX_LOGITS

__all__ = ["batch_accuracy"]


@torch.no_grad()
def batch_accuracy(
    query: Tensor,
    target: Tensor,
    negatives: Tensor | None = None,
    *,
    ids: Identities | None = None,
    gather: bool = False,
) -> Tensor:
    """Precision@1 of the queries of this rank, among the targets and hard negatives of the batch.

    A candidate that is known to be right, or the same as the query, counts neither for nor against it, and a
    tie for the best 1 / (number tied). Scores are computed by blocks of rows.

    Args:
        query: (B, D), unit vectors.
        target: (B, D), unit vectors; row i belongs to query i.
        negatives: (M, D), unit vectors.
        ids: what is known of them; see :class:`~fanoise_lightning.losses.known_right.Identities`.
        gather: among the candidates of all ranks, which then all must call it.

    Returns:
        0-d, float32; NaN where an embedding is.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> query, target = torch.eye(3)[[0, 0, 2]], torch.eye(3)[[0, 2, 2]]
        >>> batch_accuracy(query, target)    # right, wrong, and a tie with the same target
        tensor(0.5000)
        >>> batch_accuracy(query, target, ids=Identities(target_ids=torch.tensor([4, 5, 5])))
        tensor(0.6667)
    """
    batch = ContrastiveBatch.build(
        "train/accuracy", query, target, negatives, ids or Identities(), gather, may_be_alone=True
    )
    # as precision@1: the user's TF32 or bf16 switches must not decide what is a tie
    dtype = torch.float32 if query.device.type == "mps" else torch.float64
    candidates = batch.candidates.to(dtype)
    size = max(1, MAX_LOGITS // len(candidates))
    won = []
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, len(query), size):
            rows = slice(start, start + size)
            scores = batch.mask_(batch.query[rows].to(dtype) @ candidates.T, rows)
            won.append(share_won(scores, batch.own[rows], TIE))
    return torch.cat(won).mean()
