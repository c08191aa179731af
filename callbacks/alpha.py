"""Noise levels that change over the training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass

from lightning.pytorch import Trainer

from fanoise_lightning._checks import check_at_least
from fanoise_lightning.laws import law_name
from fanoise_lightning.noise import check_alpha

__all__ = ["Alpha", "LinearAlpha", "RepeatAlpha", "alpha_at", "alpha_name"]

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
    """A noise level for the number of times that the training sees each pair: ``rate * ln(passes)``.

    One pass over the data gets no noise, 14 passes 0.66, 40 passes 0.92. Noise keeps a model from fitting the
    same pairs ever more closely, and costs where every pair is new. The default rate was found for noise on
    image features at the input of a trained head, ``relative=True``; see examples/studies.

    Args:
        rate: at least 0.
        passes: how often each pair is seen, at least 1; by default the trainer's optimiser steps over those
            in one of its epochs.

    Raises:
        ValueError: if an argument is out of range; in training, if the trainer does not know how many steps
            it will take, or how many are in an epoch.

    Example:
        >>> round(RepeatAlpha(passes=40)(step=0), 2)
        0.92
    """

    rate: float = 0.25
    passes: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise ValueError(f"`rate` must be finite and at least 0, got {self.rate}")
        if self.passes is not None and not (math.isfinite(self.passes) and self.passes >= 1):
            raise ValueError(f"`passes` must be finite and at least 1, got {self.passes}")

    def of(self, trainer: Trainer) -> RepeatAlpha:
        """The same with the trainer's number of passes, if ``passes`` is not given."""
        if self.passes is not None:
            return self
        steps = trainer.estimated_stepping_batches
        per_pass = trainer.num_training_batches / trainer.accumulate_grad_batches
        if not (steps < math.inf and per_pass < math.inf):
            raise ValueError(
                "RepeatAlpha needs to know how often each pair is seen: this trainer has no last step, or "
                "its data loader no length; pass `RepeatAlpha(passes=...)`"
            )
        return RepeatAlpha(self.rate, max(1.0, steps / math.ceil(per_pass)))

    def __call__(self, step: int) -> float:
        """The level, at any optimiser step."""
        if self.passes is None:
            raise ValueError("RepeatAlpha needs `passes` outside of training")
        return self.rate * math.log(self.passes)


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


def alpha_name(alpha: Alpha) -> float | str:
    """What checkpoints call a noise level: its number, its class with arguments, or the path of the function.

    Example:
        >>> alpha_name(0.1), alpha_name(LinearAlpha(0, 0.5, steps=100))
        (0.1, 'LinearAlpha(start=0, end=0.5, steps=100)')
    """
    if not callable(alpha):
        return float(alpha)
    return repr(alpha) if is_dataclass(alpha) else law_name(alpha)
