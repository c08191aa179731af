"""Small trainable heads on frozen features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fanoise_lightning._checks import check_at_least, check_choice

__all__ = ["Head", "ResidualHead", "make_head"]

Head = Literal["linear", "mlp", "residual"]


class ResidualHead(nn.Module):
    """Features with a small network's correction: (1 - ratio) x + ratio mlp(x).

    Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024.

    Args:
        dim: D, of the features and of the result.
        hidden: the width of the network.
        ratio: how much the correction weighs, 0 to 1.
        dropout: on the hidden layer.

    Example:
        >>> ResidualHead(8, hidden=2)(torch.randn(3, 8)).shape
        torch.Size([3, 8])
    """

    def __init__(self, dim: int, hidden: int, ratio: float = 0.2, dropout: float = 0.0) -> None:
        super().__init__()
        self.ratio = ratio
        self.layers = _mlp(dim, hidden, dim, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) from features (B, D)."""
        return torch.lerp(x, self.layers(x), self.ratio)


def make_head(head: Head, dim: int, out: int, hidden: int, dropout: float) -> nn.Module:
    """A head by its name.

    Args:
        head: ``"linear"``, ``"mlp"`` with one hidden layer, or ``"residual"``, see :class:`ResidualHead`.
        dim: the width of the features.
        out: the width of the result.
        hidden: the width of the hidden layer.
        dropout: on the hidden layer; on the features for a linear head.

    Raises:
        ValueError: if the name is unknown, ``hidden`` is below 1, ``dropout`` is not from 0 to 1, or a
            residual head would change the width.
    """
    check_choice("head", head, Head)
    check_at_least("hidden", hidden, 1)
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be at least 0 and below 1, got {dropout}")
    if head == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, out))
    if head == "mlp":
        return _mlp(dim, hidden, out, dropout)
    if dim != out:
        raise ValueError(
            f"a residual head keeps the width of its features, {dim}: pass `dim={dim}`, or an mlp"
        )
    return ResidualHead(dim, hidden, dropout=dropout)


def _mlp(dim: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out))
