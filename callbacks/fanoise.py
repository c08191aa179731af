"""FANoise as a drop-in callback: noise on the features that go into the loss of any LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fanoise_lightning._checks import check_at_least, check_choice
from fanoise_lightning._lightning import should_log
from fanoise_lightning.callbacks._features import SIDES, FeatureFinder
from fanoise_lightning.callbacks._hooks import hook_before
from fanoise_lightning.callbacks._loss_search import find_loss
from fanoise_lightning.callbacks._messages import (
    tell_what_gets_noise,
    warn_of_no_noise,
    warn_of_row_norms,
    warn_of_skipped,
)
from fanoise_lightning.callbacks._repeats import Draw, Repeats, trains
from fanoise_lightning.callbacks._shapes import Scope, ShapeMemory
from fanoise_lightning.callbacks._source import NoiseSource, add_noise, statistics
from fanoise_lightning.distributed import check_equal
from fanoise_lightning.noise import Energy, Scaling, check_alpha
from fanoise_lightning.seeds import run_seed

__all__ = ["FANoise"]


class FANoise(Callback):
    """Adds noise to the features that go into the contrastive loss, shaped by their singular values.

    In each training batch, the features (B, D) of each side are decomposed where they enter the loss module,
    and Gaussian noise that follows their singular values is added, see
    :func:`~fanoise_lightning.feature_noise`. No gradient flows through the noise. Validation, the sanity
    check, test, predict and calls without gradients get clean features.

    A call of the loss that repeats an earlier one, for activation checkpointing or in an optimiser's closure,
    gets the same noise again. Runs of the tuner (``lr_find``, ``scale_batch_size``) have no noise: Lightning
    removes all callbacks. A loss with a memory bank stores noisy keys.

    Features that are not finite, all zero or not decomposable stay clean, and such batches are counted. These
    are logged at the trainer's log interval, a second instance's under ``fanoise-1/``:

    - ``fanoise/effective_rank``: the effective rank of the clean features, the mean over the sides
    - ``fanoise/noise_to_signal``: the Frobenius norm of the noise relative to that of the features, likewise
    - ``fanoise/skipped_batches``: the number of batches that were left without noise

    Args:
        alpha: the noise level, at least 0; the paper trains with 0.1. It assumes rows of unit length: under
            ``energy="constant"`` the root mean square norm of a noise row is alpha, under ``"paper"``
            alpha * sqrt(R / D * mean(S_i^2)), where S_i is the noise's scale in direction i of
            R = min(B, D). With 0 the callback does nothing.
        scaling: how the noise in a direction follows its singular value s: ``"uniform"`` is the same in every
            direction, ``"linear"`` is proportional to s, ``"sublinear"`` to sqrt(s).
        target: the dotted path of the loss module, such as ``"criterion"``. By default the only
            :class:`~fanoise_lightning.FeatureTap`, or else the only child that looks like a contrastive loss.
        sides: the features that get noise: ``"query"``, the first feature matrix in the call of the loss,
            ``"target"``, the second, or both. For a loss of embeddings and labels pass ``["query"]``.
        energy: the amount of noise: ``"paper"`` is the published formula, ``"constant"`` rescales the noise
            to E||noise row||^2 = alpha^2, to compare scaling laws at the same amount.
        relative: multiply alpha by the root mean square row norm of the features, for a loss that normalises
            its inputs.
        renormalize: scale each noisy row back to the norm of its clean row.
        negatives: add noise to hard negatives too, which are further feature matrices in the call of the
            loss; they are decomposed together with the targets. If they stay clean, a query can tell them
            from its target by that.
        momentum: shape the noise by an exponential moving average of X^T X, (D, D), rather than by the
            current batch alone, for small batches; its amount stays that of the batch. 0 turns averaging off,
            0.9 averages over about ten batches.
        every_n_steps: decompose only every n-th batch, and keep the shape of the noise in between.
        warmup_steps: raise the noise level linearly from 0 to alpha over this many optimiser steps.
        scope: decompose the features of each rank (``"local"``), or of all ranks together (``"global"``).
            Each rank draws the noise for its own rows in either case.
        seed: the seed of the noise, combined with rank, batch, side and instance. By default that of
            ``seed_everything``, or else a random one. A resumed run draws the noise of an uninterrupted one;
            on several ranks, with ``momentum`` or ``every_n_steps`` and ``scope="local"``, all of them
            resume from the statistics of rank 0.

    Raises:
        ValueError: in the constructor if an argument is out of range; at the start of the fit unless exactly
            one loss module is found; at the first call of the loss if its arguments are not features; in
            training if ``scope="global"`` and the ranks' batches differ in shape.
        RuntimeError: if the loss is evaluated again and it is unclear which noise it should get.

    References:
        "FANoise: Singular Value-Adaptive Noise Modulation for Robust Multimodal Representation Learning",
        AAAI 2026, arXiv 2511.20997.

    Example:
        >>> trainer = Trainer(callbacks=[FANoise(alpha=0.1)], logger=False)
    """

    def __init__(
        self,
        alpha: float = 0.1,
        scaling: Scaling = "sublinear",
        target: str | None = None,
        sides: Sequence[str] = SIDES,
        energy: Energy = "paper",
        relative: bool = False,
        renormalize: bool = False,
        negatives: bool = True,
        momentum: float = 0.0,
        every_n_steps: int = 1,
        warmup_steps: int = 0,
        scope: Scope = "local",
        seed: int | None = None,
    ) -> None:
        check_alpha(alpha)
        check_choice("scaling", scaling, Scaling)
        check_choice("energy", energy, Energy)
        check_choice("scope", scope, Scope)
        if isinstance(sides, str) or not sides or not set(sides) <= set(SIDES):
            raise ValueError(f"`sides` must be a list of 'query', 'target' or both, got {sides!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be at least 0 and below 1, got {momentum}")
        check_at_least("every_n_steps", every_n_steps, 1)
        check_at_least("warmup_steps", warmup_steps, 0)
        if seed is not None:
            check_at_least("seed", seed, 0)
        self.alpha = alpha
        self.scaling: Scaling = scaling
        self.target = target
        self.sides = tuple(side for side in SIDES if side in sides)
        self.energy: Energy = energy
        self.relative = relative
        self.renormalize = renormalize
        self.negatives = negatives
        self.momentum = momentum
        self.every_n_steps = every_n_steps
        self.warmup_steps = warmup_steps
        self.scope: Scope = scope
        self.seed = seed

        self._number: int | None = None  # among the trainer's instances
        self._trainer: Trainer | None = None
        self._handle: RemovableHandle | None = None
        self._repeats = Repeats()
        self._finder: Any = None
        self._forget()

    def _forget(self) -> None:
        """Reset all state of an earlier fit."""
        self._resolved_seed = self.seed
        shapes = ShapeMemory(self.scaling, self.energy, self.momentum, self.every_n_steps, self.scope)
        self._source = NoiseSource(shapes, self.relative)
        self._batches = self._draws = 0
        self._told = self._warned_of_skipped = False
        self._logged: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # a module may hold its callback: a copy must not copy the trainer too, nor share the repeats
        running = {"_trainer": None, "_handle": None, "_repeats": Repeats(), "_finder": None}
        return {**self.__dict__, **running}

    @property
    def state_key(self) -> str:
        """The number among the trainer's instances, so that a resumed run may change any argument."""
        return f"FANoise-{id(self) if self._number is None else self._number}"

    # Hooks, in the order in which they run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        instances = [c for c in trainer.callbacks if isinstance(c, FANoise)]  # type: ignore[attr-defined]
        self._number = instances.index(self)
        if stage == "fit":
            self._forget()  # a resumed run loads its state after this

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hooks()
        if self._resolved_seed is None:
            # one seed for all ranks, as a resume restores rank 0's; each rank mixes its number in
            self._resolved_seed = int(trainer.strategy.broadcast(run_seed()))
        if self.alpha == 0:
            return
        self._path, loss = find_loss(pl_module, self.target)
        self._finder = FeatureFinder(loss)
        self._trainer = trainer
        self._handle = hook_before(loss, self._add_noise)
        self._repeats.watch(trainer.optimizers)

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._repeats.new_batch()
        self._logged = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._handle is None:
            return
        self._batches += 1
        if self._batches == 1 and not self._draws and outputs is not None:
            warn_of_no_noise(self._path, "the first training batch")
        if self._logged:
            self._log(pl_module)
        self._repeats.new_batch()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._warn_of_skipped()
        if self._batches > 1 and not self._draws:
            warn_of_no_noise(self._path, f"any of {self._batches} training batches")
        self._remove_hooks()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_hooks()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove_hooks()

    def state_dict(self) -> dict[str, Any]:
        skipped = int(self._source.skipped)
        return {"seed": self._resolved_seed, "skipped": skipped, **self._source.shapes.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.seed is None:
            self._resolved_seed = state_dict["seed"]
        self._source.skipped = state_dict["skipped"]
        self._source.shapes.load_state_dict(state_dict)

    # The noise

    def _add_noise(
        self, loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        trainer = self._trainer
        if trainer is None or not trainer.training or trainer.sanity_checking or not trains():
            return None
        call = self._finder.find(args, kwargs)
        if call is None:
            return None
        parts = {side: x if self.negatives else x[:1] for side, x in call.features().items()}
        if not set(self.sides) <= set(parts):
            if not self._told or self.scope == "global":  # the other ranks would wait for this one
                raise self._finder.error(call, self.sides)
            self._source.skipped = self._source.skipped + 1  # never end a run that has been working
            return None
        features = {side: _joined(parts[side]) for side in self.sides}
        given = [x.detach() for side in self.sides for x in parts[side]]
        draw = self._repeats.find(features, given)
        if draw is None:
            if self.scope == "global":
                sizes = [size for side in self.sides for size in parts[side][0].shape]
                check_equal(tuple(sizes), "shapes of features")
            draw = self._draw(trainer, features, given)
            if not self._told and any(x.any() for x in draw.noise.values()):  # else the batch is broken
                names = {side: call.names()[side][: len(parts[side])] for side in self.sides}
                self._tell(names, self._finder.clean(call), draw)
        noise = {side: x.split([len(part) for part in parts[side]]) for side, x in draw.noise.items()}
        noisy = {
            side: [add_noise(x, z, self.renormalize) for x, z in zip(parts[side], noise[side])]
            for side in noise
        }
        return call.replaced(noisy)

    def _draw(self, trainer: Trainer, features: dict[str, Tensor], given: list[Tensor]) -> Draw:
        step, call = trainer.fit_loop.total_batch_idx, len(self._repeats.drawn)
        key = (self._resolved_seed or 0, trainer.global_rank, self._number or 0)
        noise = self._source.draw(features, self.alpha * self._level(trainer), step, call, key)
        draw = Draw(features, noise, given)
        self._repeats.drawn.append(draw)
        self._draws += 1
        if should_log(trainer):
            self._logged = statistics(features, noise)
            self._rows = len(given[0])
        return draw

    def _tell(self, names: dict[str, list[str]], clean: list[str], draw: Draw) -> None:
        self._told = True
        tell_what_gets_noise(self._path, f"{self.scaling} noise, alpha={self.alpha}", names, clean)
        if not self.relative and self._trainer is not None:
            level = self._level(self._trainer)
            warn_of_row_norms(draw.features, {side: x / level for side, x in draw.noise.items()}, self.alpha)

    def _level(self, trainer: Trainer) -> float:
        """The part of alpha that the warm-up has reached, 0 to 1."""
        return min(1.0, (trainer.global_step + 1) / max(self.warmup_steps, 1))

    def _remove_hooks(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._trainer = None
        self._repeats.unwatch()

    def _log(self, pl_module: LightningModule) -> None:
        prefix = f"fanoise-{self._number}" if self._number else "fanoise"
        metrics = {f"{prefix}/{name}": value for name, value in self._logged.items()}
        metrics[f"{prefix}/skipped_batches"] = torch.as_tensor(self._source.skipped).float()
        pl_module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=self._rows)
        self._logged = {}
        self._warn_of_skipped()

    def _warn_of_skipped(self) -> None:
        skipped = int(self._source.skipped)
        if skipped and not self._warned_of_skipped:
            self._warned_of_skipped = True
            warn_of_skipped(skipped, self._trainer)


def _joined(parts: list[Tensor]) -> Tensor:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).detach()
