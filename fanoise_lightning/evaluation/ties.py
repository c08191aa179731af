"""Which scores tie for the best, and what a tie is worth: one rule for evaluation and training batches."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["TIE", "score_dtype", "share_won"]

# Two float32 roundings of one unit vector give cosines about 1e-7 apart. Without a tolerance, rounding would
# pick the winners of a collapsed encoder.
TIE = 1e-6


def share_won(scores: Tensor, own: Tensor) -> Tensor:
    """How much of the first place each query's own target wins: 1, 0, or 1 / (number tied).

    Args:
        scores: (Q, C), higher is better; minus infinity where there is no candidate.
        own: (Q,), the column of each query's own target.

    Returns:
        (Q,) float32; NaN for a query with a NaN score.

    Example:
        >>> share_won(torch.tensor([[0.2, 0.9], [0.5, 0.5]]), own=torch.tensor([1, 0]))
        tensor([1.0000, 0.5000])
    """
    best = scores >= scores.amax(dim=1, keepdim=True) - TIE
    return best.gather(1, own[:, None])[:, 0] / best.sum(dim=1)


def score_dtype(device: torch.device) -> torch.dtype:
    """The dtype to compute cosines in: float64, or float32 on a device without it.

    A user's TF32 or bf16 switches change float32 products, and must not decide what ties.
    """
    return torch.float32 if device.type == "mps" else torch.float64
