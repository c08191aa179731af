"""Contrastive losses. A loss module takes the features of both sides; that call is where noise enters."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FeatureTap", "InfoNCE"]

MAX_LOGIT_SCALE = 100.0  # as in CLIP: a smaller learned temperature than 0.01 makes training unstable


class InfoNCE(nn.Module):
    """InfoNCE: each query must find its own target among the targets of the batch [0].

    The features are taken as they come: normalise them before, as
    :class:`~fanoise_lightning.ContrastiveModule` does. Logits and loss are float32 under any precision.

    Args:
        temperature: what cosines are divided by; 0.02 in VLM2Vec, 0.07 at CLIP's start.
        symmetric: also let each target find its query, and take the mean of both directions (CLIP).
        learnable_temperature: make the temperature a parameter, ``logit_scale`` = log(1 / temperature), with
            1 / temperature held at 100 at most.

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
        self, temperature: float = 0.02, symmetric: bool = False, learnable_temperature: bool = False
    ) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"`temperature` must be positive and finite, got {temperature}")
        self.temperature = temperature
        self.symmetric = symmetric
        self.learnable_temperature = learnable_temperature
        if learnable_temperature:
            self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def scale(self) -> Tensor | float:
        """1 / temperature, what cosines are multiplied by."""
        if self.learnable_temperature:
            return self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        return 1.0 / self.temperature

    def forward(self, query: Tensor, target: Tensor, negatives: Tensor | None = None) -> Tensor:
        """The mean loss over the batch.

        Args:
            query: (B, D).
            target: (B, D); row i belongs to query i, all other rows are its negatives.
            negatives: (M, D), hard negatives: further candidates of every query.

        Returns:
            0-d, float32.

        Raises:
            ValueError: if the shapes do not fit, or a query has no negative at all.
        """
        _check_shapes(query, target, negatives)
        with torch.autocast(query.device.type, enabled=False):
            query, candidates = query.float(), target.float()
            if negatives is not None:
                candidates = torch.cat([candidates, negatives.float()])  # (B + M, D)
            logits = self.scale * query @ candidates.T  # (B, B + M)
            labels = torch.arange(len(query), device=query.device)
            loss = F.cross_entropy(logits, labels)
            if self.symmetric:
                loss = (loss + F.cross_entropy(logits[:, : len(query)].T, labels)) / 2
            return loss

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, symmetric={self.symmetric}, "
            f"learnable_temperature={self.learnable_temperature}"
        )


class FeatureTap(nn.Module):
    """A place for noise to enter where the loss is no module: returns its two arguments as they are.

    :class:`~fanoise_lightning.callbacks.FANoise` finds it by itself and adds its noise there.

    Example:
        >>> tap = FeatureTap()                          # in __init__: self.tap = FeatureTap()
        >>> query, target = tap(torch.eye(2), torch.eye(2))    # right before the functional loss
    """

    def forward(self, query: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """``(query, target)``, each (B, D), unchanged."""
        return query, target


def _check_shapes(query: Tensor, target: Tensor, negatives: Tensor | None) -> None:
    if query.ndim != 2 or query.shape != target.shape:
        raise ValueError(
            "InfoNCE needs `query` and `target` of the same shape (B, D), got "
            f"{tuple(query.shape)} and {tuple(target.shape)}"
        )
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != query.shape[1]):
        raise ValueError(
            f"InfoNCE needs `negatives` of shape (M, {query.shape[1]}), got {tuple(negatives.shape)}"
        )
    if len(query) + (0 if negatives is None else len(negatives)) < 2:
        raise ValueError(
            f"InfoNCE got a batch of {len(query)} without hard negatives: there is nothing to contrast with. "
            "Use a batch size of at least 2"
        )
