"""The learning-rate schedule of the recipes."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["LinearWarmup"]


class LinearWarmup(LambdaLR):
    """Linear warm-up from 0, then linear decay to 0, stepped once an optimiser step.

    Args:
        optimizer: whose learning rates are scheduled.
        warmup_steps: optimiser steps until the full learning rate.
        total_steps: optimiser steps until 0. ``None`` leaves it to
            :class:`~fanoise_lightning.ContrastiveModule`, which takes the length of the training.

    Raises:
        ValueError: if the warm-up is negative or longer than the training.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> LinearWarmup(optimizer, warmup_steps=10, total_steps=100).get_last_lr()
        [0.0]
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int = 0, total_steps: int | None = None) -> None:
        if warmup_steps < 0 or (total_steps is not None and total_steps < warmup_steps):
            raise ValueError(
                f"`warmup_steps` must be from 0 to `total_steps`, got {warmup_steps} and {total_steps}"
            )
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.total_steps is None:
            return 1.0
        if step >= self.total_steps:
            return 0.0
        return (self.total_steps - step) / (self.total_steps - self.warmup_steps)
