"""The places where noise enters: the features in the call of a loss, or one module inside the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fanoise_lightning.callbacks._features import SIDES, FeatureFinder
from fanoise_lightning.callbacks._hooks import hook_after, hook_before
from fanoise_lightning.callbacks._repeats import Draw, Repeats, trains
from fanoise_lightning.callbacks._source import NoiseSource, add_noise
from fanoise_lightning.distributed import check_equal
from fanoise_lightning.sides import current_side

Where = Literal["loss", "input", "output"]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class LossSite:
    """The features that go into a loss module.

    Args:
        path: the loss's path in the LightningModule.
        loss: the loss.
        noise: gives the noise.
        sides: the features that get noise.
        negatives: whether hard negatives get noise too.
        renormalize: whether noisy rows keep their norms.
        is_global: whether the noise depends on the features of all ranks.
        batch: the number of the batch in the fit.
    """

    path: str
    loss: nn.Module
    noise: NoiseSource
    sides: tuple[str, ...]
    negatives: bool
    renormalize: bool
    is_global: bool
    batch: Callable[[], int]
    repeats: Repeats = field(default_factory=Repeats)

    def __post_init__(self) -> None:
        self._finder = FeatureFinder(self.loss)
        self._found = False

    def attach(self) -> RemovableHandle:
        """Hook the loss."""
        return hook_before(self.loss, self._before)

    def _before(self, loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if not (self.noise.in_training() and trains()):
            return None
        call = self._finder.find(args, kwargs)
        if call is None:
            return None
        parts = {side: x if self.negatives else x[:1] for side, x in call.features().items()}
        if not set(self.sides) <= set(parts):
            if not self._found or self.is_global:  # the other ranks would wait for this one
                raise self._finder.error(call, self.sides)
            self.noise.skip()  # never end a run that has been working
            return None
        features = {side: _joined(parts[side]) for side in self.sides}
        given = [x.detach() for side in self.sides for x in parts[side]]
        draw = self.repeats.find(features, given)
        if draw is None:
            if self.is_global:
                sizes = [size for side in self.sides for size in parts[side][0].shape]
                check_equal(tuple(sizes), "shapes of features")
            drawn = self.noise.draw(features, self.batch(), len(self.repeats.drawn))
            draw = Draw(features, drawn, given)
            self.repeats.drawn.append(draw)
            if not self._found and any(x.any() for x in drawn.values()):  # else the batch is broken
                self._found = True
                names = {side: call.names()[side][: len(parts[side])] for side in self.sides}
                self.noise.announce(features, drawn, _names(names, self._finder.clean(call), self.path))
        noise = {side: x.split([len(part) for part in parts[side]]) for side, x in draw.noise.items()}
        noisy = {
            side: [add_noise(x, z, self.renormalize) for x, z in zip(parts[side], noise[side])]
            for side in noise
        }
        return call.replaced(noisy)


@dataclass
class InnerSite:
    """The input or the output of a module inside the model: its first floating tensor, (B, D) or (B, N, D).

    The noise is drawn with a number from torch's global generator. What repeats a forward pass restores that
    generator (activation checkpointing, GradCache, a resumed run), and so gets the same noise.

    Args:
        path: the module's path in the LightningModule.
        module: the module.
        owner: the LightningModule; in eval mode it does not train.
        where: ``"input"`` or ``"output"``.
        noise: gives the noise.
        sides: what is being embedded when noise is added.
        renormalize: whether noisy rows keep their norms.
    """

    path: str
    module: nn.Module
    owner: nn.Module
    where: Where
    noise: NoiseSource
    sides: tuple[str, ...]
    renormalize: bool

    def attach(self) -> RemovableHandle:
        """Hook the module."""
        return (
            hook_before(self.module, self._before)
            if self.where == "input"
            else hook_after(self.module, self._after)
        )

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if not self._is_wanted():
            return None
        for index, value in enumerate(args):
            if _is_features(value):
                return (*args[:index], self._noisy(value), *args[index + 1 :]), kwargs
        for name, value in kwargs.items():
            if _is_features(value):
                return args, {**kwargs, name: self._noisy(value)}
        raise self._error([*args, *kwargs.values()])

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self._is_wanted():
            return None
        if _is_features(output):
            return self._noisy(output)
        if isinstance(output, Mapping):  # a ModelOutput too
            for name, value in output.items():
                if _is_features(value):
                    changed: Any = copy.copy(output)
                    changed[name] = self._noisy(value)
                    return changed
        if isinstance(output, (list, tuple)):
            for index, value in enumerate(output):
                if _is_features(value):
                    values = [*output[:index], self._noisy(value), *output[index + 1 :]]
                    return output._make(values) if hasattr(output, "_make") else type(output)(values)
        raise self._error(list(output) if isinstance(output, (list, tuple)) else [output])

    def _is_wanted(self) -> bool:
        if not (self.noise.in_training() and self.owner.training):
            return False
        if set(self.sides) == set(SIDES):
            return True
        side = current_side()
        if side is None:
            raise ValueError(
                f"FANoise(sides={list(self.sides)}, where={self.where!r}) cannot know for which side "
                f"'{self.path}' is called: only ContrastiveModule says so. Leave `sides` at its default, or "
                "name a module that only one side goes through"
            )
        return side in self.sides

    def _noisy(self, x: Tensor) -> Tensor:
        rows = x.detach().flatten(0, -2)
        number = int(torch.randint(2**62, ()))
        part = f"the {self.where}"
        drawn = self.noise.draw({part: rows}, number, 0)
        self.noise.announce({part: rows}, drawn, f"{part} of '{self.path}'")
        return add_noise(x.flatten(0, -2), drawn[part], self.renormalize).view_as(x)

    def _error(self, values: list[Any]) -> ValueError:
        found = ", ".join(
            f"{type(x).__name__} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            for x in values
        )
        return ValueError(
            f"FANoise found no floating tensor (B, D) or (B, N, D) in the {self.where} of '{self.path}': "
            f"{found or 'nothing'}. Name another module with `target`, or the other end with `where`"
        )


def check_inner(
    where: Where, target: str | None, negatives: bool, momentum: float, every_n_steps: int, scope: str
) -> None:
    """Raise ValueError for options that only the noise at the loss has."""
    if not target:
        raise ValueError(f"where={where!r} needs `target`, the path of a module such as 'encoder.head'")
    only_at_loss = {
        "negatives=False": not negatives,
        f"momentum={momentum}": momentum,
        f"every_n_steps={every_n_steps}": every_n_steps > 1,
        f"scope={scope!r}": scope != "local",
    }
    for option, given in only_at_loss.items():
        if given:
            raise ValueError(f"{option} is for the noise at the loss, not for where={where!r}")


def _is_features(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim in (2, 3) and x.is_floating_point()


def _joined(parts: list[Tensor]) -> Tensor:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).detach()


def _names(names: dict[str, list[str]], clean: list[str], path: str) -> str:
    """The arguments of a loss that get noise, by side, and those that stay clean."""
    listed = " and ".join(f"`{'`, `'.join(arguments)}` ({side})" for side, arguments in names.items())
    rest = f"; `{'`, `'.join(clean)}` stay clean" if clean else ""
    return f"{listed} of '{path}'{rest}"
