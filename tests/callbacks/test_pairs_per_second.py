from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from fanoise_lightning.callbacks import pairs_per_second
from fanoise_lightning.callbacks.pairs_per_second import PairsPerSecond

BATCH, VALIDATION = 2.0, 100.0  # seconds


class Counting(LightningModule):
    """Counts its pairs, of which batch i of an epoch has i + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.pairs_seen = 0

    def training_step(self, batch, batch_idx):
        self.pairs_seen += batch_idx + 1
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clock(Callback):
    """A clock that batches and validations move, and what was logged after which batch of the run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, save: Path | None = None) -> None:
        self.now, self.save = 5000.0, save
        self.logged: dict[int, float] = {}
        monkeypatch.setattr(pairs_per_second, "perf_counter", lambda: self.now)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.now += BATCH

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (speed := trainer.callback_metrics.get("train/pairs_per_second")) is not None:
            self.logged[trainer.fit_loop.total_batch_idx] = speed.item()
        if self.save is not None and trainer.fit_loop.total_batch_idx == 2:
            trainer.save_checkpoint(self.save)

    def on_validation_start(self, trainer, pl_module) -> None:
        self.now += VALIDATION


def fit(clock: Clock, ckpt_path: Path | None = None, **options) -> dict[int, float]:
    """The speeds by the batch of the run that they were logged after."""
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            "callbacks": [PairsPerSecond(), clock],  # in this order: what is logged is there for the clock
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            **options,
        }
    )
    loader = torch.utils.data.DataLoader(torch.ones(6, 1))
    trainer.fit(Counting(), loader, loader, ckpt_path=ckpt_path)
    return clock.logged


def test_it_is_the_pairs_of_a_batch_over_its_time(monkeypatch):
    assert fit(Clock(monkeypatch)) == {i: (i + 1) / BATCH for i in range(6)}


def test_between_two_logs_it_is_their_mean(monkeypatch):
    logged = fit(Clock(monkeypatch), log_every_n_steps=3)
    assert (logged[2], logged[5]) == ((1 + 2 + 3) / (3 * BATCH), (4 + 5 + 6) / (3 * BATCH))


def test_an_accumulation_is_measured_as_a_whole(monkeypatch):
    logged = fit(Clock(monkeypatch), accumulate_grad_batches=2)
    assert [logged[1], logged[3], logged[5]] == [3 / (2 * BATCH), 7 / (2 * BATCH), 11 / (2 * BATCH)]


def test_validation_does_not_count(monkeypatch):
    logged = fit(Clock(monkeypatch), limit_val_batches=1, val_check_interval=2, num_sanity_val_steps=0)
    assert logged == {i: (i + 1) / BATCH for i in range(6)}


def test_a_run_resumed_within_an_epoch_starts_the_clock_anew(monkeypatch, tmp_path):
    path = tmp_path / "saved.ckpt"
    fit(Clock(monkeypatch, save=path))
    clock = Clock(monkeypatch)
    clock.now = 9e9
    assert fit(clock, ckpt_path=path) == {i: (i + 1) / BATCH for i in (3, 4, 5)}


def test_it_is_the_speed_of_all_ranks_together(monkeypatch):
    monkeypatch.setattr(Trainer, "world_size", 4)
    assert fit(Clock(monkeypatch)) == {i: 4 * (i + 1) / BATCH for i in range(6)}
