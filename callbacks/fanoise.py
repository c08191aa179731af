"""FANoise as a drop-in callback: noise on the features that go into the loss of any LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.hooks import RemovableHandle

from fanoise_lightning._checks import check_at_least, check_choice
from fanoise_lightning.callbacks._features import SIDES
from fanoise_lightning.callbacks._loss_search import find_loss, find_module
from fanoise_lightning.callbacks._messages import warn_of_no_effect, warn_of_no_noise, warn_of_skipped
from fanoise_lightning.callbacks._shapes import Scope, ShapeMemory
from fanoise_lightning.callbacks._sites import InnerSite, LossSite, Where, check_inner
from fanoise_lightning.callbacks._source import NoiseSource
from fanoise_lightning.callbacks.alpha import Alpha, RepeatAlpha, alpha_at, alpha_name
from fanoise_lightning.laws import Scaling, check_scaling, law_name
from fanoise_lightning.noise import Energy, check_alpha
from fanoise_lightning.seeds import run_seed

__all__ = ["FANoise"]


class FANoise(Callback):
    """Adds noise to the features that go into the contrastive loss, shaped by their singular values.

    In each training batch, the features (B, D) of each side are decomposed where they enter the loss module,
    and Gaussian noise that follows their singular values is added, see
    :func:`~fanoise_lightning.feature_noise`. No gradient flows through the noise. Validation, the sanity
    check, test, predict and calls without gradients get clean features. With ``where="input"`` or
    ``"output"``, the noise enters at a module inside the model instead.

    A call of the loss that repeats an earlier one, for activation checkpointing or in an optimiser's closure,
    gets the same noise again. Runs of the tuner (``lr_find``, ``scale_batch_size``) have no noise: Lightning
    removes all callbacks. A loss with a memory bank stores noisy keys.

    Features that are not finite, all zero or not decomposable stay clean, and such batches are counted. These
    are logged at the trainer's log interval, a second instance's under ``fanoise-1/``:

    - ``fanoise/effective_rank``: the effective rank of the clean features, the mean over the sides
    - ``fanoise/noise_to_signal``: the Frobenius norm of the noise relative to that of the features, likewise
    - ``fanoise/skipped_batches``: the number of batches that were left without noise

    Args:
        alpha: the noise level, at least 0, or a function from the number of optimiser steps done to it, such
            as :class:`~fanoise_lightning.RepeatAlpha`; the paper trains with 0.1. It assumes rows of unit
            length: under ``energy="constant"`` the root mean square norm of a noise row is alpha, under
            ``"paper"`` alpha for uniform noise, else alpha * sqrt(R / D * mean(S_i^2)), where S_i is the
            noise's scale in direction i of R = min(B, D). With 0 the callback does nothing.
        scaling: how the noise in a direction follows its singular value s: ``"uniform"`` is the same in every
            direction, ``"linear"`` is proportional to s, ``"sublinear"`` to sqrt(s). Or a function from the
            singular values (R,), largest first, to a weight for each, at least 0.
        target: the dotted path of the loss module, such as ``"criterion"``. By default the only
            :class:`~fanoise_lightning.FeatureTap`, or else the only child that looks like a contrastive loss.
            With `where`, a part may be named in brackets: ``"encoder[pooler_output]"``, ``"lstm[0]"``.
        where: ``"loss"``, or ``"input"`` or ``"output"`` of the module `target`: its floating tensor (B, D),
            or else (B, N, D) with rows over all N tokens. Each call is decomposed alone, such as each chunk
            of GradCache. Noise is added in training without gradients too.
        sides: the features that get noise: ``"query"``, the first feature matrix in the call of the loss,
            ``"target"``, the second, or both. For a loss of embeddings and labels pass ``["query"]``. Inside
            the model, the side that :class:`~fanoise_lightning.ContrastiveModule` is embedding.
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
        alpha: Alpha = 0.1,
        scaling: Scaling = "sublinear",
        target: str | None = None,
        where: Where = "loss",
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
        if not callable(alpha):
            check_alpha(alpha)
        check_scaling(scaling)
        check_choice("where", where, Where)
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
        if momentum and callable(scaling):
            raise ValueError(
                "`momentum` averages second moments, whose scale a `scaling` function cannot rely on"
            )
        if where != "loss":
            check_inner(where, target, negatives, momentum, every_n_steps, scope)
        self.alpha = alpha
        self.scaling: Scaling = scaling
        self.target = target
        self.where: Where = where
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
        self._handle: RemovableHandle | None = None
        self._site: LossSite | InnerSite | None = None
        self._forget()

    def _forget(self) -> None:
        """Reset all state of an earlier fit."""
        self._resolved_seed = self.seed
        self._alpha, self._path = self.alpha, self.target
        shapes = ShapeMemory(self.scaling, self.energy, self.momentum, self.every_n_steps, self.scope)
        full = None if callable(self.alpha) else self.alpha
        self._source = NoiseSource(shapes, self._level, self.relative, full)
        self._batches = 0
        self._went_back = self._warned_of_no_effect = self._warned_of_skipped = False

    def __getstate__(self) -> dict[str, Any]:
        # a module may hold its callback: a copy must not copy the trainer too, nor share the repeats
        return {**self.__dict__, "_handle": None, "_site": None}

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
        self._source.begin(trainer, (self._resolved_seed, trainer.global_rank, self._number or 0))
        self._site = self._find_site(trainer, pl_module)
        self._handle, self._path = self._site.attach(), self._site.path

    def _find_site(self, trainer: Trainer, pl_module: LightningModule) -> LossSite | InnerSite:
        if self.where != "loss":
            path, bracket, rest = str(self.target).partition("[")
            path, module = find_module(pl_module, path)
            options = self._source, self.sides, self.renormalize, bracket + rest
            return InnerSite(path, module, pl_module, self.where, *options)
        path, loss = find_loss(pl_module, self.target)
        site = LossSite(
            path,
            loss,
            self._source,
            self.sides,
            self.negatives,
            self.renormalize,
            is_global=self.scope == "global",
            batch=lambda: trainer.fit_loop.total_batch_idx,
        )
        site.repeats.watch(trainer.optimizers)
        return site

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # only now the length of an epoch is known
        self._alpha = self.alpha.of(trainer) if isinstance(self.alpha, RepeatAlpha) else self.alpha

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._new_batch()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._went_back = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._site is None:
            return
        self._batches += 1
        if self._batches == 1 and not self._source.draws and outputs is not None:
            warn_of_no_noise(self._site.path, "the first training batch")
        if self._source.is_read is False and self._went_back and not self._warned_of_no_effect:
            self._warned_of_no_effect = True
            warn_of_no_effect(self._site.path)
        if self._source.logged:
            self._log(pl_module)
        self._new_batch()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._warn_of_skipped(trainer)
        if self._site is not None and self._batches > 1 and not self._source.draws:
            warn_of_no_noise(self._site.path, f"any of {self._batches} training batches")
        self._remove_hooks()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_hooks()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove_hooks()

    def state_dict(self) -> dict[str, Any]:
        skipped = int(self._source.skipped)
        shapes = self._source.shapes.state_dict()
        return {"seed": self._resolved_seed, "skipped": skipped, "settings": self._settings(), **shapes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.seed is None:
            self._resolved_seed = state_dict["seed"]
        self._source.skipped = state_dict["skipped"]
        self._source.shapes.load_state_dict(state_dict)

    def _settings(self) -> dict[str, Any]:
        """The arguments as plain data, to read in a checkpoint; a resumed run has its own."""
        return {
            "alpha": alpha_name(self._alpha),
            "scaling": law_name(self.scaling),
            "target": self._path,
            "where": self.where,
            "sides": list(self.sides),
            "energy": self.energy,
            "relative": self.relative,
            "renormalize": self.renormalize,
            "negatives": self.negatives,
            "momentum": self.momentum,
            "every_n_steps": self.every_n_steps,
            "warmup_steps": self.warmup_steps,
            "scope": self.scope,
        }

    def _level(self, step: int) -> float:
        """The noise level at an optimiser step, from 0."""
        return alpha_at(self._alpha, step) * min(1.0, (step + 1) / max(self.warmup_steps, 1))

    def _new_batch(self) -> None:
        self._source.logged = {}
        if self._site is not None:
            self._site.new_batch()

    def _remove_hooks(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        if isinstance(self._site, LossSite):
            self._site.repeats.unwatch()
        self._handle = self._site = None
        self._source.end()

    def _log(self, pl_module: LightningModule) -> None:
        prefix = f"fanoise-{self._number}" if self._number else "fanoise"
        metrics = {f"{prefix}/{name}": value for name, value in self._source.logged.items()}
        metrics[f"{prefix}/skipped_batches"] = torch.as_tensor(self._source.skipped).float()
        pl_module.log_dict(metrics, on_step=True, on_epoch=False, batch_size=self._source.rows)
        self._source.logged = {}
        self._warn_of_skipped(pl_module.trainer)

    def _warn_of_skipped(self, trainer: Trainer) -> None:
        skipped = int(self._source.skipped)
        if skipped and not self._warned_of_skipped:
            self._warned_of_skipped = True
            warn_of_skipped(skipped, trainer)
