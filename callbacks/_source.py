"""The noise of one call: shaped, seeded, counted, and zero if the features are broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from fanoise_lightning._lightning import in_backward, should_log
from fanoise_lightning.callbacks._features import SIDES
from fanoise_lightning.callbacks._messages import tell_what_gets_noise, warn_of_row_norms
from fanoise_lightning.callbacks._shapes import ShapeMemory
from fanoise_lightning.laws import law_name
from fanoise_lightning.noise import row_norm
from fanoise_lightning.seeds import derive_seed
from fanoise_lightning.spectrum import effective_rank, largest, singular_values


class NoiseSource:
    """Draws the noise of a fit.

    Args:
        shapes: gives the shape of the noise.
        alpha: the noise level at an optimiser step, from 0.
        relative: multiply the noise level by the root mean square row norm of the features.
        full: the level after a warm-up, for messages; ``None`` if there is no such level.

    Attributes:
        skipped: how many calls got no noise, on the device: reading it waits.
        draws: how many calls got noise, or were skipped.
        logged: the statistics of the latest draw at a step that is logged; empty if there is none.
        rows: the number of rows of that draw.
        is_read: whether a gradient came back to noisy features; ``None`` if none required it.
    """

    def __init__(
        self,
        shapes: ShapeMemory,
        alpha: Callable[[int], float],
        relative: bool = False,
        full: float | None = None,
    ) -> None:
        self.shapes = shapes
        self.alpha = alpha
        self.relative = relative
        self.full = full
        self.skipped: Tensor | int = 0
        self.draws = self.rows = 0
        self.logged: dict[str, Tensor] = {}
        self.is_read: bool | None = None
        self._trainer: Trainer | None = None
        self._key: tuple[int, ...] = ()
        self._announced = False

    def begin(self, trainer: Trainer, key: tuple[int, ...]) -> None:
        """Start to draw.

        Args:
            trainer: of the fit.
            key: parts of the seed of all noise: the run's seed, the rank, the number of the callback.
        """
        self._trainer, self._key = trainer, key

    def end(self) -> None:
        """Draw no more, and let the trainer go."""
        self._trainer = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None}

    def in_training(self) -> bool:
        """Whether a training step is running."""
        trainer = self._trainer
        return trainer is not None and bool(trainer.training) and not trainer.sanity_checking

    def skip(self) -> None:
        """Count a call that has no features."""
        self.skipped = self.skipped + 1

    def draw(self, features: dict[str, Tensor], number: int, call: int = 0) -> dict[str, Tensor]:
        """Noise for every part, or zeros for all if any is broken; decided on the device.

        Args:
            features: part to (B, D); a part is a side, or the one place inside the model.
            number: of the batch in the fit, or a random one.
            call: the number of the call of the loss in the batch.
        """
        assert self._trainer is not None
        alpha = self.alpha(self._trainer.global_step)
        noise: dict[str, Tensor] = {}
        broken: Tensor | bool = False
        for part, x in features.items():
            try:
                if x.numel() == 0:
                    raise torch.linalg.LinAlgError("no features")
                shape = self.shapes.shape(part, x, number, call)
            except torch.linalg.LinAlgError:
                broken, noise[part] = True, torch.zeros_like(x)
                continue
            place = SIDES.index(part) if part in SIDES else len(SIDES)
            generator = torch.Generator(x.device).manual_seed(derive_seed(*self._key, number, call, place))
            level = alpha * row_norm(x) if self.relative else alpha
            noise[part] = shape.sample(x, level, generator)
            broken = broken | _is_broken(x, noise[part])
        noise = _zero_if(broken, noise)
        if not in_backward():  # a pass that repeats another
            self.skipped = broken + self.skipped
            self.draws += 1
            if should_log(self._trainer):
                self.logged = statistics(features, noise)
                self.rows = len(next(iter(features.values())))
        return noise

    def watch(self, *noisy: Tensor) -> None:
        """Notice the first gradient that comes back to noisy features: without one, nothing reads them."""
        for x in noisy:
            if not self.is_read and x.requires_grad:
                self.is_read = False
                x.register_hook(self._read)

    def _read(self, gradient: Tensor) -> None:
        self.is_read = True

    def announce(self, features: dict[str, Tensor], noise: dict[str, Tensor], where: str) -> None:
        """Print once what gets noise, and warn if its rows are far from unit length."""
        # without noise the batch is broken, or alpha still 0
        if self._announced or self._trainer is None or not any(x.any() for x in noise.values()):
            return
        self._announced = True
        now = self.alpha(self._trainer.global_step)
        alpha = now if self.full is None else self.full
        tell_what_gets_noise(f"{law_name(self.shapes.scaling)} noise, alpha={alpha:g}", where)
        if not self.relative:
            warn_of_row_norms(features, {part: x * (alpha / now) for part, x in noise.items()}, alpha)


def _is_broken(x: Tensor, noise: Tensor) -> Tensor | bool:
    """Whether features or noise are not finite, or the features all zero; on the CPU a plain bool."""
    sizes = largest(x), largest(noise)
    size, added = (z.item() for z in sizes) if x.device.type == "cpu" else sizes
    fine = (size > 0) & (size + added < torch.inf)
    return not fine if isinstance(fine, bool) else ~fine


def _zero_if(broken: Tensor | bool, noise: dict[str, Tensor]) -> dict[str, Tensor]:
    """The noise, or zeros; where reading a flag would wait for the device, decided on the device."""
    if broken is False:
        return noise
    return {
        part: torch.where(torch.as_tensor(broken, device=x.device), torch.zeros_like(x), x)
        for part, x in noise.items()
    }


def add_noise(features: Tensor, noise: Tensor, renormalize: bool) -> Tensor:
    """Noisy features (B, D) in the features' dtype; `renormalize` keeps the norm of every row."""
    noisy = features + noise.to(features.dtype)
    if not renormalize:
        return noisy
    norm, noisy_norm = (x.norm(dim=1, keepdim=True) for x in (features, noisy))
    return noisy * (norm / noisy_norm.clamp_min(torch.finfo(noisy.dtype).tiny))


def statistics(features: dict[str, Tensor], noise: dict[str, Tensor]) -> dict[str, Tensor]:
    """The effective rank of the features and the ratio of noise to features, each the mean over the sides."""
    ranks, ratios = [], []
    for side, x in features.items():
        try:
            ranks.append(effective_rank(singular_values(x)))
        except torch.linalg.LinAlgError:
            ranks.append(torch.full((), torch.nan, device=x.device))
        ratios.append(noise[side].float().norm() / x.detach().float().norm())
    return {
        "effective_rank": torch.stack(ranks).mean(),
        "noise_to_signal": torch.stack(ratios).mean(),
    }
