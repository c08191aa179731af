"""Precision@1 within a training batch, among the candidates of the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from fanoise_lightning.evaluation.ties import score_dtype, share_won
from fanoise_lightning.losses.contrastive_batch import ContrastiveBatch
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

    A candidate that is known to be right, or is the query itself, counts neither for nor against a query. A
    tie for the best score counts 1 / (number tied). Scores are computed block by block.

    Args:
        query: (B, D), unit vectors.
        target: (B, D), unit vectors; row i belongs to query i.
        negatives: (M, D), unit vectors.
        ids: their ids; see :class:`~fanoise_lightning.losses.known_right.Identities`.
        gather: compare with the candidates of all ranks, all of which must then call it.

    Returns:
        0-d, float32; NaN if an embedding is.

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
    dtype = score_dtype(query.device)
    candidates = batch.candidates.to(dtype)
    size = max(1, MAX_LOGITS // len(candidates))
    won = []
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, len(query), size):
            rows = slice(start, start + size)
            scores = batch.mask_(batch.query[rows].to(dtype) @ candidates.T, rows)
            won.append(share_won(scores, batch.own[rows]))
    return torch.cat(won).mean()
