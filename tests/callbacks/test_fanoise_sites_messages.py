"""What noise inside a model logs, and which options and modules it refuses."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from noisy_sites import Outputs, fit, quiet
from plain_module import Pairs, PlainModule
from torch.utils.data import DataLoader

from fanoise_lightning.callbacks import FANoise


def test_it_is_logged_and_told(caplog):
    class Logged(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            self.metrics = dict(trainer.callback_metrics)

    logged = Logged()
    with caplog.at_level("INFO"):
        noises = (
            FANoise(0.1, relative=True),
            FANoise(0.3, "uniform", "net", "input", energy="constant", relative=True),
        )
        fit(PlainModule(), *noises, logged, log_every_n_steps=1)
    lines = [record.getMessage() for record in caplog.records if "FANoise" in record.getMessage()]
    assert lines[0] == "FANoise: uniform noise, alpha=0.3, on the input of 'net'"
    assert logged.metrics["fanoise-1/noise_to_signal"] == pytest.approx(0.3, rel=0.3)
    assert {
        "fanoise/noise_to_signal",
        "fanoise-1/effective_rank",
        "fanoise-1/skipped_batches",
    } <= logged.metrics.keys()


def test_broken_features_pass_and_are_counted():
    class Broken(PlainModule):
        def embed(self, x):
            return super().embed(x * (torch.nan if self.trainer.global_step == 1 else 1))

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if loss.isfinite() else None

    trainer = quiet(FANoise(0.5, target="net", where="input"), max_epochs=1, limit_train_batches=3)
    with pytest.warns(UserWarning, match="left 2 training batches without noise"):
        trainer.fit(Broken(), DataLoader(Pairs(), batch_size=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": None}, r"where='input' needs `target`"),
        ({"momentum": 0.9}, r"momentum=0.9 is for the noise at the loss"),
        ({"every_n_steps": 2}, r"every_n_steps=2 is for the noise at the loss"),
        ({"scope": "global"}, r"scope='global' is for the noise at the loss"),
        ({"negatives": False}, r"negatives=False is for the noise at the loss"),
        ({"where": "inside"}, r"`where` must be one of 'loss', 'input', 'output', got 'inside'"),
    ],
)
def test_options_of_the_loss_are_refused_inside(options, message):
    with pytest.raises(ValueError, match=message):
        FANoise(**{"target": "net", "where": "input", **options})


def test_an_unknown_module_is_named():
    with pytest.raises(ValueError, match=r"target='nett' names no module of PlainModule; .*: 'net'"):
        fit(PlainModule(), FANoise(target="nett", where="input"))


def test_a_module_without_features_is_an_error():
    with pytest.raises(ValueError, match=r"no floating tensor .* in the output of 'part': int"):
        fit(Outputs(lambda x: len(x), lambda out: torch.ones(8, 8)), FANoise(target="part", where="output"))
