"""SigLIP's loss: every query and target, by itself, belongs together or not."""

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

__all__ = ["SigmoidLoss"]


class SigmoidLoss(nn.Module):
    """The loss of SigLIP: of every query and target, whether they belong together [0].

    The sum of ``-log sigmoid(z * (scale * cosine + bias))`` over all queries and targets, divided by the
    number of queries, where z is 1 for a pair and -1 else. Scale and bias are learned. As in
    :class:`InfoNCE`, features are taken as they come, the loss is float32, and a large batch is computed
    block by block.

    Args:
        temperature: 1 / scale at the start; 0.1 in the paper.
        initial_bias: the bias at the start; -10 in the paper, since nearly all do not belong together.
        gather: with several processes, take the targets and hard negatives of all of them.

    Raises:
        ValueError: if the temperature is not positive and finite.

    References:
        [0] Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, arXiv 2303.15343.

    Example:
        >>> loss = SigmoidLoss()
        >>> query, target = (F.normalize(torch.randn(8, 32), dim=1) for _ in range(2))
        >>> loss(query, target).shape
        torch.Size([])
    """

    def __init__(self, temperature: float = 0.1, initial_bias: float = -10.0, gather: bool = True) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.initial_bias = initial_bias
        self.gather = gather
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(float(initial_bias)))

    @property
    def scale(self) -> Tensor:
        """1 / temperature, what cosines are multiplied by."""
        return self.logit_scale.exp()

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
        """The loss of the queries of this rank.

        Args:
            query: (B, D).
            target: (B, D); row i belongs to query i, those of other pairs do not.
            negatives: (M, D), hard negatives: belong to no query. M may differ between ranks.
            target_ids: (B,), integers: targets with the same number are the same, and what is the same as the
                own target is left out of the sum. -1 is like no other. Numbers may be missing on some ranks.
            negative_ids: (M,), integers, by which hard negatives are compared with targets.
            query_ids: (B,), integers: of queries with the same number, the target of each is right for all. A
                target or hard negative with the number of a query is that query itself, and no negative of
                it: where queries and targets are numbered separately, let no number be in both.
            mask_pairs: (B,), bool: in a row of False only hard negatives are left out that are known to be
                right, and no targets but what the row itself is; all True by default.

        Returns:
            0-d, float32.

        Raises:
            ValueError: as :class:`InfoNCE`.
        """
        with torch.autocast(query.device.type, enabled=False):
            name = type(self).__name__
            ids = Identities(target_ids, negative_ids, query_ids, mask_pairs)
            batch = ContrastiveBatch.build(name, query, target, negatives, ids, self.gather)
            sigmoid = partial(_sigmoid, batch)
            return sum_of_blocks(sigmoid, batch.query, batch.candidates, self.scale, self.bias) / len(query)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, initial_bias={self.initial_bias}, gather={self.gather}"


def _sigmoid(
    batch: ContrastiveBatch, rows: slice, query: Tensor, candidates: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    logits = batch.mask_(torch.addmm(bias, scale * query, candidates.T), rows)  # (b, N)
    own = batch.own[rows, None]
    wrong = logits.scatter(1, own, -logits.gather(1, own))  # -z * logit
    return F.softplus(wrong).sum()  # 0 where masked
