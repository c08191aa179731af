"""What the contrastive losses share: their arguments, and how the loss of a batch is averaged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fanoise_lightning.losses.contrastive_batch import ContrastiveBatch
from fanoise_lightning.losses.known_right import Identities

__all__ = ["InBatchLoss"]


class InBatchLoss(nn.Module):
    """A loss that contrasts each query with the targets and hard negatives of the batch.

    Subclasses define :meth:`total`, the loss summed over the queries of this rank.

    Args:
        gather: with several processes, contrast with the targets and hard negatives of all of them.
    """

    def __init__(self, gather: bool = True) -> None:
        super().__init__()
        self.gather = gather

    def forward(
        self,
        query: Tensor,
        target: Tensor,
        negatives: Tensor | None = None,
        target_ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        query_ids: Tensor | None = None,
        mask_pairs: Tensor | None = None,
    ) -> Tensor:
        """The mean loss over the pairs of this rank, in float32 under any precision.

        Args:
            query: (B, D).
            target: (B, D); row i belongs to query i, and the other rows are its negatives.
            negatives: (M, D), hard negatives, which are negatives of every query. M may differ between ranks.
            target_ids: (B,), integers. Targets with the same id are the same, and a target that is the same
                as a query's own target is not a negative of that query. -1 equals no other id. Ids may be
                missing on some ranks.
            negative_ids: (M,), integers, compared with the ids of the targets.
            query_ids: (B,), integers. If queries have the same id, the target of each is right for all of
                them. A target or hard negative with the id of a query is that query itself, and not one of
                its negatives: if queries and targets are numbered separately, their ids must not overlap.
            mask_pairs: (B,), bool. In rows where it is False, targets of other pairs stay negatives even if
                they are right, unless they are the query itself; hard negatives that are right are still left
                out. With ``symmetric`` this holds for the queries of other pairs, too. True by default.

        Returns:
            0-d, float32.

        Raises:
            ValueError: if the shapes do not fit, or there is nothing to contrast with; on every rank if B
                differs between ranks, before any features are exchanged.
        """
        ids = Identities(target_ids, negative_ids, query_ids, mask_pairs)
        with torch.autocast(query.device.type, enabled=False):
            batch = ContrastiveBatch.build(type(self).__name__, query, target, negatives, ids, self.gather)
            return self.total(batch) / len(query)

    def total(self, batch: ContrastiveBatch) -> Tensor:
        """The summed loss, 0-d, of the queries of this rank."""
        raise NotImplementedError
