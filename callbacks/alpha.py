"""Noise levels that change over the training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch import Trainer

from fanoise_lightning._checks import check_at_least, check_positive
from fanoise_lightning.noise import check_alpha

__all__ = ["Alpha", "LinearAlpha", "RepeatAlpha", "alpha_at"]

Alpha = float | Callable[[int], float]
"""A noise level, or a function from the number of optimiser steps done, from 0, to one."""


@dataclass(frozen=True)
class LinearAlpha:
    """A noise level that moves linearly from ``start`` to ``end``, and stays there.

    Args:
        start: the level at the first optimiser step, at least 0.
        end: the level after ``steps`` steps, at least 0.
        steps: optimiser steps, at least 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> alpha = LinearAlpha(start=0.0, end=0.5, steps=100)
        >>> alpha(0), alpha(50), alpha(1000)
        (0.0, 0.25, 0.5)
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_alpha(self.start)
        check_alpha(self.end)
        check_at_least("steps", self.steps, 1)

    def __call__(self, step: int) -> float:
        """The level at this optimiser step, from 0."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class RepeatAlpha:
    """A noise level that follows the share of the training so far that was repetition.

    After p passes over the data it is ``peak * (1 - 1 / p)``, and 0 in the first. Noise keeps a model from
    fitting the same pairs ever more closely, and gets in the way of pairs that it sees for the first time.

    Args:
        peak: the level that many passes approach, at least 0.
        steps_per_pass: optimiser steps in a pass over the data; by default those of the trainer's epoch.

    Raises:
        ValueError: if ``peak`` is negative or not finite, or ``steps_per_pass`` is not positive; in training,
            if an epoch has no known length.

    Example:
        >>> alpha = RepeatAlpha(0.4, steps_per_pass=100)
        >>> alpha(50), alpha(200), alpha(400)
        (0.0, 0.2, 0.30000000000000004)
    """

    peak: float
    steps_per_pass: float | None = None

    def __post_init__(self) -> None:
        check_alpha(self.peak)
        if self.steps_per_pass is not None:
            check_positive("steps_per_pass", self.steps_per_pass)

    def of(self, trainer: Trainer) -> RepeatAlpha:
        """The same with the trainer's epoch as a pass, if ``steps_per_pass`` is not given."""
        if self.steps_per_pass is not None:
            return self
        batches = trainer.num_training_batches
        if not batches < math.inf:
            raise ValueError(
                "RepeatAlpha needs the length of a pass, which this data loader does not know: pass "
                "`RepeatAlpha(peak, steps_per_pass=...)`"
            )
        steps = batches / trainer.accumulate_grad_batches
        return RepeatAlpha(self.peak, max(steps, 1))

    def __call__(self, step: int) -> float:
        """The level at this optimiser step, from 0."""
        if self.steps_per_pass is None:
            raise ValueError("RepeatAlpha needs `steps_per_pass` outside of training")
        return self.peak * max(0.0, 1 - self.steps_per_pass / max(step, 1))


def alpha_at(alpha: Alpha, step: int) -> float:
    """The noise level at an optimiser step, from 0.

    Raises:
        ValueError: if a function returns something else than a finite number of at least 0.
    """
    if not callable(alpha):
        return alpha
    level = alpha(step)
    try:
        check_alpha(level)
    except (TypeError, ValueError):
        raise ValueError(f"`alpha` must be finite and at least 0, got {level!r} at step {step}") from None
    return float(level)
