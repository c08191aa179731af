"""From the hidden states of a row's tokens to its vector, whether rows are padded left or right."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Pooling", "last_token", "mean_token"]

Pooling = Literal["last", "mean", "eos"]


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The hidden state at the last position that the mask keeps.

    Args:
        hidden: (B, L, D).
        mask: (B, L), nonzero where there is a token, 0 for padding.

    Returns:
        (B, D), in the dtype of `hidden`.

    Example:
        >>> last_token(torch.arange(6.0).view(2, 3, 1), torch.tensor([[1, 1, 0], [0, 1, 1]])).tolist()
        [[1.0], [5.0]]
    """
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (mask.bool() * positions).argmax(dim=1)  # (B,)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def mean_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean hidden state of the positions that the mask keeps.

    Args:
        hidden: (B, L, D).
        mask: (B, L), nonzero where there is a token, 0 for padding.

    Returns:
        (B, D), float32.

    Example:
        >>> mean_token(torch.arange(6.0).view(2, 3, 1), torch.tensor([[1, 1, 0], [0, 1, 1]])).tolist()
        [[0.5], [4.5]]
    """
    # masked_fill, not a product: a non-finite state in the padding must not spread to the mean
    kept = hidden.float().masked_fill(~mask.bool()[..., None], 0.0)
    return kept.sum(dim=1) / mask.bool().sum(dim=1, keepdim=True)
