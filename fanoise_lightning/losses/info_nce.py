"""InfoNCE, the softmax loss over in-batch candidates."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fanoise_lightning._checks import check_positive
from fanoise_lightning.losses.candidates import ContrastiveBatch
from fanoise_lightning.losses.known_right import Identities
from fanoise_lightning.losses.tiled import sum_of_blocks

__all__ = ["InfoNCE"]

MAX_LOGIT_SCALE = 100.0  # as in CLIP: a smaller learned temperature than 0.01 makes training unstable


class InfoNCE(nn.Module):
    """InfoNCE: each query must find its own target among the targets of the batch [0].

    The features are taken as they come: normalise them before, as
    :class:`~fanoise_lightning.ContrastiveModule` does. Logits and loss are float32 under any precision. A
    large batch is computed block by block: its logits are never held all at once.

    Args:
        temperature: what cosines are divided by; 0.02 in VLM2Vec, 0.07 at CLIP's start.
        symmetric: also let each target find its query, and take the mean of both directions (CLIP).
        learnable_temperature: make the temperature a parameter, ``logit_scale`` = log(1 / temperature), with
            1 / temperature held at 100 at most.
        gather: with several processes, contrast with the targets and hard negatives of all of them.

    Raises:
        ValueError: if the temperature is not positive and finite.

    References:
        [0] van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018.

    Example:
        >>> loss = InfoNCE(temperature=0.07)
        >>> query, target = (F.normalize(torch.randn(8, 32), dim=1) for _ in range(2))
        >>> loss(query, target).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = 0.02,
        symmetric: bool = False,
        learnable_temperature: bool = False,
        gather: bool = True,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.symmetric = symmetric
        self.learnable_temperature = learnable_temperature
        self.gather = gather
        if learnable_temperature:
            self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def scale(self) -> Tensor | float:
        """1 / temperature, what cosines are multiplied by."""
        if self.learnable_temperature:
            return self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        return 1.0 / self.temperature

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
        """The mean loss over the pairs of this rank.

        Args:
            query: (B, D).
            target: (B, D); row i belongs to query i, those of other pairs are its negatives.
            negatives: (M, D), hard negatives: further candidates of every query. M may differ between ranks.
            target_ids: (B,), integers: targets with the same number are the same, and what is the same as the
                own target is no negative. -1 is like no other. Numbers may be missing on some ranks.
            negative_ids: (M,), integers, by which hard negatives are compared with targets.
            query_ids: (B,), integers: of queries with the same number, the target of each is right for all. A
                target or hard negative with the number of a query is that query itself, and no negative of
                it: where queries and targets are numbered separately, let no number be in both.
            mask_pairs: (B,), bool: in a row of False only hard negatives are left out that are known to be
                right, and no targets or queries but what the row itself is; all True by default.

        Returns:
            0-d, float32.

        Raises:
            ValueError: if the shapes do not fit, or there is nothing to contrast with; on every rank if B is
                not the same on all of them, before any features are exchanged.
        """
        with torch.autocast(query.device.type, enabled=False):
            name = type(self).__name__
            ids = Identities(target_ids, negative_ids, query_ids, mask_pairs)
            batch = ContrastiveBatch.build(name, query, target, negatives, ids, self.gather)
            loss = self._one_way(batch)
            if self.symmetric:
                loss = (loss + self._one_way(batch.reversed())) / 2
            return loss / len(query)

    def _one_way(self, batch: ContrastiveBatch) -> Tensor:
        return sum_of_blocks(partial(_cross_entropy, batch), batch.query, batch.candidates, self.scale)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, symmetric={self.symmetric}, "
            f"learnable_temperature={self.learnable_temperature}, gather={self.gather}"
        )


def _cross_entropy(
    batch: ContrastiveBatch, rows: slice, query: Tensor, candidates: Tensor, scale: Tensor | float
) -> Tensor:
    logits = batch.mask_(scale * query @ candidates.T, rows)  # (b, N)
    return F.cross_entropy(logits, batch.own[rows], reduction="sum")
