"""Noise levels that change over the training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fanoise_lightning._checks import check_at_least
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


@dataclass
class RepeatAlpha:
    """A noise level that follows the share of the training so far that was repetition.

    After p passes over the data it is ``peak * (1 - 1 / p)``, and 0 in the first. Noise keeps a model from
    fitting the same pairs more and more closely; pairs that it sees for the first time it learns better
    without. docs/arena.md has the measurements.

    Args:
        peak: the level that many passes approach, at least 0.
        steps_per_pass: optimiser steps in a pass over the data; :class:`FANoise` sets it from the trainer.

    Raises:
        ValueError: if ``peak`` is negative or not finite.

    Example:
        >>> alpha = RepeatAlpha(0.4, steps_per_pass=100)
        >>> alpha(50), alpha(200), alpha(400)
        (0.0, 0.2, 0.3)
    """

    peak: float
    steps_per_pass: float = math.inf

    def __post_init__(self) -> None:
        check_alpha(self.peak)

    def __call__(self, step: int) -> float:
        """The level at this optimiser step, from 0."""
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
