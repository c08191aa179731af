"""FANoise as a drop-in callback: noise on the features that go into the loss of any LightningModule."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fanoise_lightning.callbacks._features import SIDES, find_loss, read_features, replace_features
from fanoise_lightning.callbacks._shapes import Scope, ShapeMemory
from fanoise_lightning.distributed import check_equal
from fanoise_lightning.noise import Energy, Scaling, check_alpha, check_choice
from fanoise_lightning.seeds import derive_seed, run_seed
from fanoise_lightning.spectrum import effective_rank, singular_values

__all__ = ["FANoise"]


class FANoise(Callback):
    """Adds noise shaped by the batch's singular values to the features that go into the contrastive loss.

    In each training step the features of each side, (B, D), are decomposed where they enter the loss module,
    and noise of that shape is added (see :func:`fanoise_lightning.feature_noise`). Validation, the sanity
    check, test and predict see clean features. No gradient flows through the noise.

    Features that are not finite, all zero or not decomposable pass unchanged and are counted. Logged at the
    trainer's log interval: ``fanoise/effective_rank`` (of the clean features), ``fanoise/noise_to_signal``
    (the ratio of the Frobenius norms of noise and features), both the mean over the sides, and
    ``fanoise/skipped_batches``.

    Args:
        alpha: the noise level; the paper trains with 0.1. With 0 nothing is hooked or logged.
        scaling: how the noise follows the singular values s: ``"uniform"`` not at all, ``"linear"`` like s,
            ``"sublinear"`` like sqrt(s).
        target: the dotted path of the loss module, such as ``"criterion"``. By default the only
            :class:`~fanoise_lightning.FeatureTap`, else the only child that looks like a loss.
        sides: which features get noise: ``"query"``, the first matrix that the loss is called with,
            ``"target"``, the second, or both.
        energy: ``"paper"`` is the published formula; ``"constant"`` rescales the noise to
            E||noise row||^2 = alpha^2, so that scaling laws are compared at the same amount.
        renormalize: scale each noisy row back to the norm of its clean row.
        momentum: shape the noise by an exponential moving average of X^T X, (D, D), instead of this batch's
            alone: for small batches. 0 is off, 0.9 averages over about ten batches.
        every_n_steps: decompose every n-th batch, and keep the shape of the noise in between.
        warmup_steps: raise the noise level linearly from 0 to alpha over so many optimiser steps.
        scope: decompose the features of each rank (``"local"``), or those of all ranks together
            (``"global"``). The noise itself is drawn by each rank for its own rows.
        seed: for the noise alone, mixed with rank, batch and side. By default ``seed_everything``'s, else a
            random one. The noise after a resume is that of an unbroken run; on several ranks, with
            ``momentum`` or ``every_n_steps`` and ``scope="local"``, rank 0's statistics are restored on all.

    Raises:
        ValueError: in the constructor for values out of range; at the start of the fit if no loss module, or
            more than one, is found; in training if ``scope="global"`` and the ranks' batches differ in shape.
        RuntimeError: if the loss module was not called in the first training batch.

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
        renormalize: bool = False,
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
            raise ValueError(f"`sides` must hold 'query', 'target' or both, got {sides!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be at least 0 and below 1, got {momentum}")
        if every_n_steps < 1:
            raise ValueError(f"`every_n_steps` must be at least 1, got {every_n_steps}")
        if warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must be at least 0, got {warmup_steps}")
        if seed is not None and seed < 0:
            raise ValueError(f"`seed` must be at least 0, got {seed}")
        self.alpha = alpha
        self.scaling: Scaling = scaling
        self.target = target
        self.sides = tuple(side for side in SIDES if side in sides)
        self.energy: Energy = energy
        self.renormalize = renormalize
        self.momentum = momentum
        self.every_n_steps = every_n_steps
        self.warmup_steps = warmup_steps
        self.scope: Scope = scope
        self.seed = seed

        self._resolved_seed = seed
        self._handle: RemovableHandle | None = None
        self._trainer: Trainer | None = None
        self._first_batch = True
        self._calls = 0  # of the loss module in this batch
        self._shapes = ShapeMemory(scaling, energy, momentum, every_n_steps, scope)
        self._skipped: Tensor | int = 0
        self._warned = False
        self._where = ""
        self._logged: dict[str, Tensor] = {}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(
            target=self.target, sides=self.sides, scaling=self.scaling, alpha=self.alpha
        )

    # Hooks, in the order in which they run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hook()
        if self._resolved_seed is None:
            # one for all ranks, each of which mixes its number in: a resume restores rank 0's on all
            self._resolved_seed = int(trainer.strategy.broadcast(run_seed()))
        if self.alpha == 0:
            return
        loss = find_loss(pl_module, self.target)
        if getattr(pl_module, "_compiler_ctx", None) is not None or hasattr(loss, "_orig_mod"):
            torch._dynamo.reset()  # a graph that was compiled before would ignore the hook in silence
        self._trainer = trainer
        self._where = f" on rank {trainer.global_rank}" if trainer.world_size > 1 else ""
        self._first_batch = True
        self._handle = loss.register_forward_pre_hook(self._add_noise, with_kwargs=True)

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._calls = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._handle is None:
            return
        if self._first_batch and self._calls == 0 and outputs is not None:
            raise RuntimeError(
                f"FANoise added no noise: {self.target or 'the loss module that it found'} was not called in "
                'the first training batch. Name the module that is, FANoise(target="path.to.loss")'
            )
        self._first_batch = False
        if self._logged:
            pl_module.log_dict(self._logged, on_step=True, on_epoch=False)
            pl_module.log("fanoise/skipped_batches", float(self._skipped), on_step=True, on_epoch=False)
            self._logged = {}
            self._warn_of_skipped()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._warn_of_skipped()
        self._remove_hook()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_hook()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove_hook()

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": self._resolved_seed,
            "skipped": int(self._skipped),
            **self._shapes.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.seed is None:
            self._resolved_seed = state_dict["seed"]
        self._skipped = state_dict["skipped"]
        self._shapes.load_state_dict(state_dict)

    # The noise

    @torch.compiler.disable
    def _add_noise(
        self, loss: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        trainer = self._trainer
        if trainer is None or not trainer.training or trainer.sanity_checking:
            return None
        features = read_features(loss, args, kwargs)
        if not set(self.sides) <= set(features):
            raise ValueError(
                f"FANoise needs a loss called with the features of each side as (B, D) matrices, but "
                f"{type(loss).__name__} was called with {len(features)} of them; sides={self.sides}"
            )
        features = {side: features[side] for side in self.sides}
        noise = self._draw(trainer, features)
        self._calls += 1
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._logged = _statistics(features, noise)
        noisy = {side: self._perturb(features[side], noise[side]) for side in noise}
        return replace_features(loss, args, kwargs, noisy)

    def _draw(self, trainer: Trainer, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Noise for every side, zero if that of any side is broken; decided and counted on the device."""
        if self.scope == "global":
            check_equal(tuple(size for x in features.values() for size in x.shape), "shapes of features")
        step = trainer.fit_loop.total_batch_idx
        alpha = self.alpha * min(1.0, (trainer.global_step + 1) / (self.warmup_steps or 1))
        noise: dict[str, Tensor] = {}
        broken = torch.zeros((), dtype=torch.bool, device=next(iter(features.values())).device)
        for side, x in features.items():
            try:
                if x.numel() == 0:
                    raise torch.linalg.LinAlgError("no features")
                shape = self._shapes.shape(side, x, step)
            except torch.linalg.LinAlgError:
                broken, noise[side] = torch.ones_like(broken), torch.zeros_like(x)
                continue
            noise[side] = shape.sample(x, alpha, self._generator(trainer.global_rank, step, side, x.device))
            finite = noise[side].isfinite().all() & x.isfinite().all() & x.any()
            broken = broken | ~finite
        self._skipped = broken + self._skipped
        return {side: torch.where(broken, torch.zeros_like(x), x) for side, x in noise.items()}

    def _generator(self, rank: int, step: int, side: str, device: torch.device) -> torch.Generator:
        seed = derive_seed(self._resolved_seed or 0, rank, step, self._calls, SIDES.index(side))
        return torch.Generator(device).manual_seed(seed)

    def _perturb(self, features: Tensor, noise: Tensor) -> Tensor:
        noisy = features + noise
        if not self.renormalize:
            return noisy
        norm, noisy_norm = (x.norm(dim=1, keepdim=True) for x in (features, noisy))
        return noisy * (norm / noisy_norm.clamp_min(torch.finfo(noisy.dtype).tiny))

    def _warn_of_skipped(self) -> None:
        if self._warned or not int(self._skipped):
            return
        self._warned = True
        # On every rank: a warning of rank 0 alone would hide what the others skipped.
        warnings.warn(
            f"FANoise left {int(self._skipped)} training batches without noise so far{self._where}: their "
            "features were not finite, empty or all zero, or their decomposition did not converge. The count "
            "is logged as `fanoise/skipped_batches`.",
            stacklevel=2,
        )

    def _remove_hook(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._trainer = None


def _statistics(features: dict[str, Tensor], noise: dict[str, Tensor]) -> dict[str, Tensor]:
    ranks, ratios = [], []
    for side, x in features.items():
        try:
            ranks.append(effective_rank(singular_values(x)))
        except torch.linalg.LinAlgError:
            ranks.append(torch.full((), torch.nan, device=x.device))
        ratios.append(noise[side].float().norm() / x.detach().float().norm())
    return {
        "fanoise/effective_rank": torch.stack(ranks).mean(),
        "fanoise/noise_to_signal": torch.stack(ratios).mean(),
    }
