"""The speed of training in pairs."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fanoise_lightning._lightning import is_accumulating, should_log


class PairsPerSecond(Callback):
    """Logs ``train/pairs_per_second`` at the trainer's log interval: over all ranks, since the last log.

    Validation does not count: the clock restarts after each, and with each epoch. The module counts its
    pairs in ``pairs_seen``, since the size of a collated batch may not be known. (Lightning's
    ThroughputMonitor would need it to, and makes the host wait for the device at every batch.)
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._pairs = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart(pl_module)  # a fit that is resumed within an epoch does not start that epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not should_log(trainer) or is_accumulating(trainer):
            return
        seen: Any = pl_module.pairs_seen
        speed = (seen - self._pairs) * trainer.world_size / (perf_counter() - self._since)
        pl_module.log("train/pairs_per_second", speed, prog_bar=True, batch_size=1)
        self._restart(pl_module)

    def _restart(self, pl_module: LightningModule) -> None:
        seen: Any = pl_module.pairs_seen
        self._since, self._pairs = perf_counter(), seen
