"""An insertion point for noise in front of a functional loss."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["FeatureTap"]


class FeatureTap(nn.Module):
    """Marks where noise enters a loss that is a function: returns its arguments unchanged.

    Use it if your loss is not an ``nn.Module``: :class:`~fanoise_lightning.callbacks.FANoise` finds the tap
    by itself and adds its noise there. A loss that is a module needs no tap.

    Example:
        >>> import torch
        >>> tap = FeatureTap()                          # in __init__: self.tap = FeatureTap()
        >>> query, target = tap(torch.eye(2), torch.eye(2))    # right before the functional loss
    """

    def forward(self, query: Tensor, target: Tensor, *negatives: Tensor) -> tuple[Tensor, ...]:
        """``(query, target, *negatives)``: (B, D), (B, D) and hard negatives (M, D), unchanged."""
        return query, target, *negatives
