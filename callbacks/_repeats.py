"""Evaluations of the loss that repeat an earlier one, and must get the same noise.

1. Activation checkpointing runs the loss again in the backward pass, to recompute activations. With other
   noise, the gradient would not be that of the loss that was computed.
2. An optimiser with a closure (LBFGS) evaluates the same batch several times in one step. With other noise
   each time, it would search along a function that changes meanwhile.
3. A loss may be called twice with the same tensors, for example to log its value, or with its sides swapped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
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
    """The noise of one call of the loss: the clean features and the noise of each side, both (B, D).

    Args:
        features: the features; those of the targets are joined with the hard negatives.
        noise: what is added to them.
        given: the tensors that the loss was called with, by side.
    """

    features: Sides
    noise: Sides
    given: dict[str, list[Tensor]]

    def of(self, side: str, given: list[Tensor]) -> Tensor | None:
        """The noise of these very tensors, as this side or else as the other; ``None`` for other tensors."""
        for own in sorted(self.given, key=lambda own: own != side):
            if len(given) == len(self.given[own]) and all(map(_same, given, self.given[own])):
                return self.noise[own]
        return None

    def fits(self, features: Sides) -> bool:
        """Whether the noise has the shape of these features."""
        shapes = {side: x.shape for side, x in features.items()}
        return shapes == {side: x.shape for side, x in self.features.items()}

    def is_near(self, features: Sides) -> bool:
        """Whether features of equal shapes are those of the call, recomputed; waits for the device."""
        pairs = [
            (x.float().nan_to_num(), self.features[side].float().nan_to_num()) for side, x in features.items()
        ]
        return all(bool((x - own).norm() <= 1e-2 * own.norm()) for x, own in pairs)

    def adds_as(self, other: Draw) -> bool:
        """Whether the noise equals that of another draw, as it does if both are left without."""
        return all(torch.equal(x, other.noise[side]) for side, x in self.noise.items())


def _same(x: Tensor, y: Tensor) -> bool:
    # the draw keeps its tensors alive: no other tensor can be in their memory
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()


class Repeats:
    """Remembers what was drawn in a batch, and recognises calls of the loss that repeat one."""

    def __init__(self) -> None:
        self.drawn: list[Draw] = []  # in this batch
        self._repeating = False  # in a later evaluation of an optimiser's closure
        self._first = self._next = 0  # the draws that an evaluation goes through
        self._handles: list[RemovableHandle] = []

    def watch(self, optimizers: list[Optimizer]) -> None:
        """Watch the steps of these optimisers, until :meth:`unwatch`."""
        for optimizer in optimizers:
            with suppress(AttributeError):  # of another library: no such hooks, and no closures
                self._handles.append(optimizer.register_step_pre_hook(self._before_step))
                self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def unwatch(self) -> None:
        """Forget everything."""
        while self._handles:
            self._handles.pop().remove()
        self.new_batch()

    def new_batch(self) -> None:
        """Forget the draws of the last batch."""
        self.drawn, self._repeating = [], False

    def noise(self, features: Sides, given: dict[str, list[Tensor]], draw: Callable[[Sides], Sides]) -> Sides:
        """The noise of a call: that of the call which it repeats, or of the same tensors, or else a new one.

        Args:
            features: the features of each side, (B, D).
            given: the tensors that the loss was called with, by side.
            draw: draws the noise for some sides.

        Raises:
            RuntimeError: if the call repeats another, but it is unclear which.
        """
        known = {side: x for side in features if (x := self._of(side, given[side])) is not None}
        if self.drawn and in_backward():
            return known if len(known) == len(features) else self._recomputed(features)
        if self._repeating and self._next < len(self.drawn):
            return self._evaluated_again(features)
        new = {side: x for side, x in features.items() if side not in known}
        noise = {**known, **(draw(new) if new else {})}
        self.drawn.append(Draw(features, noise, given))
        return noise

    def _of(self, side: str, given: list[Tensor]) -> Tensor | None:
        return next((noise for draw in self.drawn if (noise := draw.of(side, given)) is not None), None)

    def _evaluated_again(self, features: Sides) -> Sides:
        draw = self.drawn[self._next]
        self._next += 1
        if not draw.fits(features):
            raise RuntimeError(
                "FANoise cannot give an optimiser's closure the noise of its first evaluation: the loss was "
                "called with features of another shape. Evaluate the same batch each time."
            )
        return draw.noise

    def _recomputed(self, features: Sides) -> Sides:
        fitting = [draw for draw in self.drawn if draw.fits(features)]
        if len(fitting) > 1:
            fitting = [draw for draw in fitting if draw.is_near(features)]
        if fitting and all(draw.adds_as(fitting[0]) for draw in fitting[1:]):
            return fitting[0].noise
        raise RuntimeError(
            f"the loss was called in a backward pass with features like those of {len(fitting)} of the "
            f"{len(self.drawn)} calls before it in this batch: FANoise cannot tell whose noise belongs to "
            "them. Move the loss out of the checkpointed function, or compute equal features only once"
        )

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Mark where each evaluation of the closure begins."""
        self._first = len(self.drawn)
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._marked(kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):  # args[0] is the optimiser itself
            return (args[0], self._marked(args[1]), *args[2:]), kwargs
        return None

    def _marked(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        evaluations = count()

        def evaluate() -> Any:
            self._repeating, self._next = next(evaluations) > 0, self._first
            return closure()

        return evaluate

    def _after_step(self, *_: Any) -> None:
        self._repeating = False


def trains() -> bool:
    """Whether a call of the loss trains: with gradients, or as the first pass of a reentrant checkpoint."""
    if torch.is_grad_enabled():
        return True
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code is CheckpointFunction.forward.__code__:
            return True
    return False
