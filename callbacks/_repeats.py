"""Evaluations of the loss that repeat an earlier one, and must see its noise.

1. Activation checkpointing runs the loss again in the backward pass, to have the activations that it dropped.
   With other noise, the gradient would be that of another loss than was computed.
2. An optimiser with a closure (LBFGS) evaluates the same batch several times in one step. With other noise
   each time, it would search along a function that changes under it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

from fanoise_lightning._lightning import in_backward

Sides = dict[str, Tensor]


@dataclass
class Draw:
    """The noise of one call of the loss: side to clean features and to noise, both (B, D)."""

    features: Sides
    noise: Sides

    def fits(self, features: Sides) -> bool:
        """Whether the noise has the shape of these features."""
        shapes = {side: x.shape for side, x in features.items()}
        return shapes == {side: x.shape for side, x in self.features.items()}

    def distance(self, features: Sides) -> float:
        """How far other features of these shapes are from those of this call, relative to their norm."""
        pairs = [(x.detach().float(), self.features[side].float()) for side, x in features.items()]
        return max(float((x - own).norm() / own.norm().clamp_min(1e-30)) for x, own in pairs)


class Repeats:
    """Remembers what was drawn in a batch, and tells which calls of the loss repeat an earlier one."""

    def __init__(self) -> None:
        self.drawn: list[Draw] = []  # in this batch
        self._in_step = self._again = False  # within an optimiser's step; in a later evaluation of it
        self._first = self._next = 0  # of the draws that an evaluation of the closure goes through
        self._handles: list[RemovableHandle] = []

    def watch(self, optimizers: list[Optimizer]) -> None:
        """Watch the steps of these optimisers, until :meth:`unwatch`."""
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(partial(self._step, True)))
            self._handles.append(optimizer.register_step_post_hook(partial(self._step, False)))

    def unwatch(self) -> None:
        """Forget everything."""
        while self._handles:
            self._handles.pop().remove()
        self.new_batch()

    def new_batch(self) -> None:
        """Forget the draws of the last batch."""
        self.drawn = []
        self._step(False)

    def on_backward(self) -> None:
        """The loss was evaluated: within an optimiser's step, what comes next is its closure again."""
        self._again, self._next = self._in_step, self._first

    def find(self, features: Sides) -> Draw | None:
        """The draw that a call with these features repeats; ``None`` for a call that repeats nothing.

        Raises:
            RuntimeError: if the call repeats one, and it cannot be known which.
        """
        if in_backward():
            return self._recomputed(features)
        if not self._again or self._next >= len(self.drawn):
            return None
        draw = self.drawn[self._next]
        self._next += 1
        if not draw.fits(features):
            raise RuntimeError(
                "FANoise cannot give an optimiser's closure the noise of its first evaluation: the loss was "
                "called with features of another shape. Evaluate the same batch each time."
            )
        return draw

    def _recomputed(self, features: Sides) -> Draw | None:
        fitting = [draw for draw in self.drawn if draw.fits(features)]
        if len(fitting) > 1:  # told apart by their values; waits for the device
            nearest = min(fitting, key=lambda draw: draw.distance(features))
            fitting = [nearest] if nearest.distance(features) < 1e-2 else []
        if self.drawn and not fitting:
            raise RuntimeError(
                "the loss was called in a backward pass with features that it was not called with before in "
                "this batch: FANoise cannot tell which noise belongs to them. Take the loss out of the "
                "checkpointed function, or let it recompute the same features."
            )
        return fitting[0] if fitting else None

    def _step(self, begins: bool, *_: Any) -> None:
        self._in_step, self._again, self._first = begins, False, len(self.drawn)


def trains() -> bool:
    """Whether a call of the loss trains: with gradients, or as the first pass of a reentrant checkpoint."""
    if torch.is_grad_enabled():
        return True
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code is CheckpointFunction.forward.__code__:
            return True
    return False
