"""A LightningModule whose interrupted runs go on as if they had not been interrupted."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from fanoise_lightning.distributed import all_reduce_sum, exchange, world_size
from fanoise_lightning.seeds import derive_seed, run_seed

__all__ = ["ResumableModule"]


class ResumableModule(LightningModule):
    """Adds what Lightning's checkpoints leave out of the state of a run.

    1. Dropout, and whatever else draws from torch's global generators in a training step: they are seeded at
       every training batch from (run seed, rank, batch index). So a resumed run draws what an unbroken one
       draws, and every rank draws its own. The run seed is ``seed_everything``'s, else a random one; it is
       kept in the checkpoint.
    2. Gradients, where a checkpoint is written between the batches of an accumulation. Lightning does so
       when it has just resumed, after validations and at time intervals. Over several ranks their mean is
       kept: a resumed run then equals an unbroken one to rounding.

    Children that override one of the hooks below call ``super()``'s.
    """

    _run_seed: int | None = None
    _gradients: dict[str, Tensor] | None = None

    def setup(self, stage: str) -> None:
        self._run_seed = self._gradients = None  # of an earlier fit, or of load_from_checkpoint

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._run_seed is None:
            self._run_seed = int(self.trainer.strategy.broadcast(run_seed()))
        # of every device; those of the accelerator are set on the host, nothing waits for it
        batch_of_run = self.trainer.fit_loop.total_batch_idx
        torch.manual_seed(derive_seed(self._run_seed, self.global_rank, batch_of_run))
        if self._gradients is not None:
            _restore_gradients(self, self._gradients)
            self._gradients = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # a trainer can save a module that it has not trained: without being attached
        accumulating = self._trainer is not None and self._trainer.fit_loop._should_accumulate()
        checkpoint["resume"] = {
            "run_seed": self._run_seed,
            "gradients": _gradients(self) if accumulating else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("resume", {})
        self._run_seed, self._gradients = state.get("run_seed"), state.get("gradients")


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradients held so far, whole, the mean over the ranks."""
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


def _restore_gradients(module: nn.Module, gradients: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if name in gradients:
            gradient = gradients[name].to(parameter.device)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
