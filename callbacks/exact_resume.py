"""Resumed runs that end exactly where an unbroken run would."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fanoise_lightning._lightning import is_accumulating
from fanoise_lightning.distributed import all_reduce_sum, exchange, world_size
from fanoise_lightning.seeds import derive_seed, run_seed, seed_generators

_KEY = "fanoise_lightning.ExactResume"
# Where earlier versions wrote the same entries; a module may have an entry of its own there.
_OLD_KEY, _OLD_ENTRIES = "resume", {"run_seed", "gradients"}


class ExactResume(Callback):
    """Makes a resumed run of any LightningModule equal to one that was never interrupted, bit for bit.

    It adds to a run and its checkpoints what Lightning omits:

    1. Random numbers. torch's global generators, from which dropout draws, are seeded before each training
       step from (run seed, rank, number of the batch in the run). A resumed run therefore draws what an
       unbroken run draws, and each rank draws its own numbers. The run seed is that of ``seed_everything``,
       else a random one, and is kept in the checkpoint.
    2. Gradients, where a checkpoint is written in the middle of an accumulation, as Lightning does right
       after resuming, after a validation and at time intervals. With several ranks their mean is kept: a
       resumed run then equals an unbroken one up to rounding.

    The rest is up to the training data: its loader must continue with the next batch (it needs
    ``state_dict`` and ``load_state_dict``), and its batches must not depend on torch's global generators. The
    training step must not draw from the generators of NumPy or :mod:`random`. Gradients are kept under
    automatic optimisation only.

    :class:`~fanoise_lightning.ContrastiveModule` brings its own.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ExactResume()], logger=False)
    """

    def __init__(self) -> None:
        self._run_seed: int | None = None
        self._gradients: dict[str, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._run_seed = self._gradients = None  # of an earlier fit; a checkpoint is loaded after this

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._run_seed is None:
            self._run_seed = int(trainer.strategy.broadcast(run_seed()))
        batch_of_run = trainer.fit_loop.total_batch_idx
        seed_generators(derive_seed(self._run_seed, trainer.global_rank, batch_of_run))
        if self._gradients is not None:
            restore_gradients(pl_module, self._gradients)
            self._gradients = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # not in `state_dict`, which does not receive the trainer
        gradients = held_gradients(pl_module) if is_accumulating(trainer) else None
        checkpoint[_KEY] = {"run_seed": self._run_seed, "gradients": gradients}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        old = checkpoint.get(_OLD_KEY)
        state = checkpoint.get(_KEY) or (old if isinstance(old, dict) and set(old) == _OLD_ENTRIES else {})
        self._run_seed, self._gradients = state.get("run_seed"), state.get("gradients")


def held_gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradients held so far, whole, the mean over the ranks. Call it on all of them."""
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    held = exchange(tuple(parameter.grad is not None for _, parameter in trained))
    gradients = {}
    for (name, parameter), ranks in zip(trained, zip(*held)):
        if not any(ranks):  # on no rank: the optimiser is to pass it by
            continue
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if isinstance(gradient, DTensor):  # FSDP2 has averaged it already
            gradients[name] = gradient.full_tensor()
        else:
            gradients[name] = all_reduce_sum(gradient) / world_size()
    return gradients


def restore_gradients(module: nn.Module, gradients: dict[str, Tensor]) -> None:
    """Give parameters the gradients that :func:`held_gradients` kept."""
    for name, parameter in module.named_parameters():
        if name in gradients:
            gradient = gradients[name].to(parameter.device)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
