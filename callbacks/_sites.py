"""The places where noise enters: the features in the call of a loss, or one module inside the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fanoise_lightning._lightning import in_backward
from fanoise_lightning.callbacks._features import SIDES, FeatureFinder, is_named_otherwise, parameters_of
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

    def new_batch(self) -> None:
        """Forget the calls of the last batch."""
        self.repeats.new_batch()

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

    def __post_init__(self) -> None:
        self._calls: dict[int, bool] = {}  # in this batch, by number: whether they get noise
        self._parameters = parameters_of(self.module)

    def attach(self) -> RemovableHandle:
        """Hook the module."""
        return (
            hook_before(self.module, self._before)
            if self.where == "input"
            else hook_after(self.module, self._after)
        )

    def new_batch(self) -> None:
        """Forget the calls of the last batch."""
        self._calls = {}

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        number = self._number()
        if number is None:
            return None
        positional = dict(enumerate(args))
        names = dict(zip_longest(positional, self._parameters[: len(args)], fillvalue="..."))
        place, noisy = self._noisy(number, {**positional, **kwargs}, {**names, **{k: k for k in kwargs}})
        if isinstance(place, int):
            return (*args[:place], noisy, *args[place + 1 :]), kwargs
        return args, {**kwargs, place: noisy}

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        number = self._number()
        if number is None:
            return None
        if isinstance(output, Mapping):  # a ModelOutput too
            changed: Any = copy.copy(output)
            name, noisy = self._noisy(number, output, {name: str(name) for name in output})
            changed[name] = noisy
            return changed
        if not isinstance(output, (list, tuple)):
            return self._noisy(number, {0: output}, {0: ""})[1]
        names = getattr(output, "_fields", [f"[{index}]" for index in range(len(output))])
        index, noisy = self._noisy(number, dict(enumerate(output)), dict(enumerate(names)))
        values = [*output[:index], noisy, *output[index + 1 :]]
        return output._make(values) if hasattr(output, "_make") else type(output)(values)

    def _number(self) -> int | None:
        """The number of a call that gets noise, the same if it is repeated; ``None`` for other calls."""
        if not (self.noise.in_training() and self.owner.training):
            return None
        number = int(torch.randint(2**62, (), device="cpu"))
        if not (in_backward() and self._calls):
            self._calls[number] = self._is_wanted()
        elif number not in self._calls:
            raise RuntimeError(
                f"'{self.path}' is computed again in a backward pass, with other random numbers than the "
                "first time: its noise would differ, and the gradients would be wrong. Let activation "
                "checkpointing restore the random numbers (`preserve_rng_state=True`)"
            )
        return number if self._calls[number] else None

    def _is_wanted(self) -> bool:
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

    def _noisy(self, number: int, values: Mapping[Any, Any], names: Mapping[Any, str]) -> tuple[Any, Tensor]:
        """Where the features are among `values`, and what they become."""
        found = [place for place, x in values.items() if _is_features(x)]
        if not found:
            raise self._error(list(values.values()))
        named = [place for place in found if not is_named_otherwise(names[place])]
        place = (named or found)[0]
        x = values[place]
        rows = x.detach().flatten(0, -2)
        drawn = self.noise.draw({self.where: rows}, number, 0)
        clean = [names[other] for other in named[1:] if values[other].shape[-1] == x.shape[-1]]
        which = f", `{names[place]}`" if len(found) > 1 else ""
        described = f"the {self.where} of '{self.path}'{which}{_stay(clean)}"
        self.noise.announce({self.where: rows}, drawn, described)
        return place, add_noise(x.flatten(0, -2), drawn[self.where], self.renormalize).view_as(x)

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
    return f"{listed} of '{path}'{_stay(clean)}"


def _stay(clean: list[str]) -> str:
    if not clean:
        return ""
    return f"; `{'`, `'.join(clean)}` {'stays' if len(clean) == 1 else 'stay'} clean"
