"""InfoNCE, the softmax loss over in-batch candidates."""

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

__all__ = ["InfoNCE"]

MAX_LOGIT_SCALE = 100.0  # as in CLIP: training is unstable if the learned temperature drops below 0.01


class InfoNCE(InBatchLoss):
    """InfoNCE: each query must find its own target among the targets of the batch [0].

    The default choice for pairs of a query and a target; larger batches give more negatives. Set `symmetric`
    if targets must find their queries too (CLIP); for SigLIP models or small batches see
    :class:`SigmoidLoss`.

    Features are used as given: normalise them first, as :class:`~fanoise_lightning.ContrastiveModule` does.
    Logits and loss are float32 under any precision. Large batches are computed block by block, so that their
    logits are never held all at once.

    Args:
        temperature: what cosines are divided by; 0.02 in VLM2Vec, 0.07 initially in CLIP.
        symmetric: make each target find its query too, and average both directions (CLIP).
        learnable_temperature: make the temperature a parameter, ``logit_scale`` = log(1 / temperature), with
            1 / temperature capped at 100.
        gather: with several processes, contrast with the targets and hard negatives of all of them.
        label_smoothing: the share of the label, in [0, 1), that all candidates of a query get in equal parts
            (:func:`torch.nn.functional.cross_entropy`), except excluded ones.

    Raises:
        ValueError: if the temperature is not positive and finite, or the smoothing not in [0, 1).

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
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(gather)
        check_positive("temperature", temperature)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be at least 0 and below 1, got {label_smoothing}")
        self.temperature = temperature
        self.symmetric = symmetric
        self.label_smoothing = label_smoothing
        self.learnable_temperature = learnable_temperature
        if learnable_temperature:
            self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def scale(self) -> Tensor | float:
        """1 / temperature, what cosines are multiplied by."""
        if self.learnable_temperature:
            return self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        return 1.0 / self.temperature

    def total(self, batch: ContrastiveBatch) -> Tensor:
        """The summed cross entropy, 0-d, of the queries of this rank."""
        if self.symmetric:
            return (self._one_way(batch) + self._one_way(batch.reversed())) / 2
        return self._one_way(batch)

    def _one_way(self, batch: ContrastiveBatch) -> Tensor:
        cross_entropy = partial(_cross_entropy, batch, self.label_smoothing)
        return sum_of_blocks(cross_entropy, batch.query, batch.candidates, self.scale)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, symmetric={self.symmetric}, "
            f"learnable_temperature={self.learnable_temperature}, gather={self.gather}, "
            f"label_smoothing={self.label_smoothing}"
        )


def _cross_entropy(
    batch: ContrastiveBatch,
    smoothing: float,
    rows: slice,
    query: Tensor,
    candidates: Tensor,
    scale: Tensor | float,
) -> Tensor:
    logits = batch.mask_(scale * query @ candidates.T, rows)  # (b, N)
    total = F.cross_entropy(logits, batch.own[rows], reduction="sum")
    if smoothing == 0:
        return total
    excluded = logits.isneginf()  # torch's own smoothing would make them infinitely wrong
    mean = logits.masked_fill(excluded, 0).sum(dim=1) / (~excluded).sum(dim=1)
    own = logits.gather(1, batch.own[rows, None]).squeeze(1)
    return total + smoothing * (own - mean).sum()
