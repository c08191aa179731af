"""SigLIP's loss: each query and target is classified by itself, as a pair or not."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fanoise_lightning._checks import check_positive
from fanoise_lightning.losses.contrastive_batch import ContrastiveBatch
from fanoise_lightning.losses.in_batch_loss import InBatchLoss
from fanoise_lightning.losses.tiled import sum_of_blocks

__all__ = ["SigmoidLoss"]


class SigmoidLoss(InBatchLoss):
    """The loss of SigLIP: for every query and target, whether they belong together [0].

    Use it to fine-tune a SigLIP model with the loss it was pretrained with, or with small batches, where its
    authors report better results than with a softmax. Otherwise prefer :class:`InfoNCE`.

    It is the sum of ``-log sigmoid(z * (scale * cosine + bias))`` over all queries and targets, divided by
    the number of queries; z is 1 for a pair and -1 otherwise. Scale and bias are learned. As with
    :class:`InfoNCE`, features are used as given, the loss is float32, and large batches are computed block by
    block.

    Args:
        temperature: the initial 1 / scale; 0.1 in the paper.
        initial_bias: the initial bias; -10 in the paper, because nearly all combinations are not pairs.
        gather: with several processes, contrast with the targets and hard negatives of all of them.

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
        super().__init__(gather)
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.initial_bias = initial_bias
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(float(initial_bias)))

    @property
    def scale(self) -> Tensor:
        """1 / temperature, what cosines are multiplied by."""
        return self.logit_scale.exp()

    def total(self, batch: ContrastiveBatch) -> Tensor:
        """The loss, 0-d, summed over the queries of this rank and all their candidates."""
        return sum_of_blocks(partial(_sigmoid, batch), batch.query, batch.candidates, self.scale, self.bias)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, initial_bias={self.initial_bias}, gather={self.gather}"


def _sigmoid(
    batch: ContrastiveBatch, rows: slice, query: Tensor, candidates: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    logits = batch.mask_(torch.addmm(bias, scale * query, candidates.T), rows)  # (b, N)
    own = batch.own[rows, None]
    wrong = logits.scatter(1, own, -logits.gather(1, own))  # -z * logit
    return F.softplus(wrong).sum()  # 0 where masked
