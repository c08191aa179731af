"""The places where noise enters: the features in the call of a loss, or one module inside the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fanoise_lightning._lightning import in_backward
from fanoise_lightning.callbacks._entries import Entry, entries, items_of, likely
from fanoise_lightning.callbacks._features import SIDES, Call, FeatureFinder, parameters_of
from fanoise_lightning.callbacks._hooks import hook_after, hook_before
from fanoise_lightning.callbacks._messages import warn_of_clean_gradients
from fanoise_lightning.callbacks._repeats import Repeats, trains
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
                raise self._finder.error(call, self.sides, self.path)
            self.noise.skip()  # never end a run that has been working
            return None
        features = {side: _joined(parts[side]) for side in self.sides}
        given = {side: [x.detach() for x in parts[side]] for side in self.sides}
        drawn = self.repeats.noise(features, given, partial(self._draw, given))
        if not self._found and any(x.any() for x in drawn.values()):  # else the batch is broken
            self._found = True
            self._tell(call, parts, features, drawn)
        noise = {side: x.split([len(part) for part in parts[side]]) for side, x in drawn.items()}
        noisy = {
            side: [add_noise(x, z, self.renormalize) for x, z in zip(parts[side], noise[side])]
            for side in noise
        }
        self.noise.watch(*(x for side in noisy.values() for x in side))
        return call.replaced(noisy)

    def _draw(self, given: dict[str, list[Tensor]], features: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.is_global:
            sizes = [size for side in features for size in given[side][0].shape]
            check_equal(tuple(sizes), "shapes of features")
        return self.noise.draw(features, self.batch(), len(self.repeats.drawn))

    def _tell(
        self,
        call: Call,
        parts: dict[str, list[Tensor]],
        features: dict[str, Tensor],
        noise: dict[str, Tensor],
    ) -> None:
        """Name the arguments that get noise, and warn if they are not the ones that train."""
        names = {side: call.names()[side][: len(parts[side])] for side in self.sides}
        clean = self._finder.clean(call)
        self.noise.announce(features, noise, _names(names, [*clean], self.path))
        trained = [name for name, x in clean.items() if x.requires_grad]
        if trained and not any(x.requires_grad for side in parts.values() for x in side):
            warn_of_clean_gradients(self.path, trained)


@dataclass
class InnerSite:
    """The features in the input or the output of a module inside the model, (B, D) or (B, N, D).

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
        entry: which of several tensors to take, such as ``"[pooler_output]"``; "" for the likely one.
    """

    path: str
    module: nn.Module
    owner: nn.Module
    where: Where
    noise: NoiseSource
    sides: tuple[str, ...]
    renormalize: bool
    entry: str = ""

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
        names = [*self._parameters[: len(args)], *map(str, range(len(self._parameters), len(args)))]
        values = self._noisy(number, {**dict(zip(names, args)), **kwargs})
        return tuple(values.pop(name) for name in names), values

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        number = self._number()
        return None if number is None else self._noisy(number, output)

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

    def _noisy(self, number: int, container: Any) -> Any:
        """A copy of the arguments or of the output, with noise on the features."""
        beside = entries(container)
        found = entries(container, self.entry) if self.entry else likely(beside, self.where == "output")
        if len(found) != 1:
            raise self._error(found, beside, container)
        (entry,) = found
        rows = entry.value.flatten(0, -2)
        drawn = self.noise.draw({self.where: rows.detach()}, number)
        clean = [
            other.name
            for other in beside
            if other.paths != entry.paths
            and other.value.shape[-1] == rows.shape[-1]
            and not other.is_named_otherwise
        ]
        chosen = entry.name if clean or self.entry else ""
        described = f"the {self.where} of '{self.path}{chosen}'{_stay(clean)}"
        self.noise.announce({self.where: rows.detach()}, drawn, described)
        noisy = add_noise(rows, drawn[self.where], self.renormalize)
        if not entry.value.is_leaf:  # nobody needs to ask for the gradient of data
            self.noise.watch(noisy)
        return entry.replaced(container, noisy.view_as(entry.value))

    def _error(self, found: list[Entry], beside: list[Entry], container: Any) -> ValueError:
        owner = f"the {self.where} of '{self.path}'"
        if not beside:
            values = (items_of(container) or {"": container}).values()
            kinds = ", ".join(type(x).__name__ for x in values)
            return ValueError(
                f"FANoise found no floating tensor (B, D) or (B, N, D) in {owner}: {kinds}. Name "
                "another module with `target`, or the other end with `where`"
            )
        listed = ", ".join(f"`{entry.name}` {tuple(entry.value.shape)}" for entry in found or beside)
        problem = f"found no features `{self.entry}` in {owner}"
        if found:
            problem = f"cannot tell which are the features in {owner}"
        return ValueError(
            f"FANoise {problem}: {listed}. Name them, such as "
            f'FANoise(target="{self.path}{(found or beside)[0].name}", where="{self.where}")'
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
