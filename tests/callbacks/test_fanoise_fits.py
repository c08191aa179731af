"""From fit to fit, from checkpoint to checkpoint; when it logs."""

from __future__ import annotations

import logging

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from plain_module import Pairs, PlainModule, Recorder, fit
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fanoise_lightning import ContrastiveModule, Encoder, InfoNCE
from fanoise_lightning.callbacks import FANoise, SpectrumMonitor

# One callback, several fits


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"every_n_steps": 3}, {}])
def test_a_second_fit_starts_as_the_first_did(options):
    used, fresh = FANoise(alpha=0.5, seed=0, **options), FANoise(alpha=0.5, seed=0, **options)
    fit(PlainModule(InfoNCE(0.5)), [used], max_steps=4)
    used._source.skipped = torch.tensor(3)
    first, second = PlainModule(), PlainModule()
    fit(first, [used])
    fit(second, [fresh])
    assert first.losses == second.losses
    assert int(used._source.skipped) == 0


def test_a_second_fit_may_have_another_width():
    class Wide(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(6, 12)

    callback = FANoise(momentum=0.9, every_n_steps=2)
    fit(PlainModule(), [callback])
    fit(Wide(), [callback])
    assert callback._source.draws == 6


def test_a_validation_does_not_forget_the_fit(tmp_path):
    callback, module = FANoise(momentum=0.9, seed=0), PlainModule()
    trainer = fit(module, [callback], max_steps=3)
    trainer.validate(module, DataLoader(Pairs(), batch_size=8), verbose=False)
    assert callback.state_dict()["moments"]


# A resume


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 0.7},
        {"scaling": "linear"},
        {"energy": "constant"},
        {"sides": ["query"]},
        {"target": "criterion"},
    ],
)
def test_a_resume_with_another_argument_keeps_seed_and_statistics(tmp_path, monkeypatch, recwarn, change):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    options = {"momentum": 0.9, "every_n_steps": 5}
    first, second = FANoise(**options), FANoise(**options, **change)
    fit(PlainModule(), [first, checkpoint], max_steps=2)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][first.state_key]
    second.setup(Trainer(callbacks=[second], logger=False), PlainModule(), "fit")
    assert second.state_key == first.state_key
    fit(PlainModule(), [second, checkpoint], max_steps=3, ckpt_path=str(tmp_path / "last.ckpt"))
    assert second._resolved_seed == first._resolved_seed
    known = saved["moments"]["query", 0, 8]
    assert known.norm() > 0
    kept = second._source.shapes._moments["query", 0, 8]
    assert not torch.equal(kept, known)  # one more batch went in
    assert F.cosine_similarity(kept.flatten(), known.flatten(), dim=0) > 0.9
    assert not [w for w in recwarn if "FANoise" in str(w.message)]


def test_a_kept_shape_of_another_law_is_left(tmp_path):
    state = FANoise(every_n_steps=5)
    fit(PlainModule(), [state], max_steps=1)
    for law, kept in ((FANoise(every_n_steps=5), True), (FANoise(scaling="linear", every_n_steps=5), False)):
        law.load_state_dict(state.state_dict())
        assert bool(law._source.shapes._shapes) == kept


# A loss that comes later


def test_a_loss_that_is_used_from_a_later_step_on_gets_noise(recwarn):
    class WarmUp(PlainModule):
        def compute_loss(self, batch):
            if len(self.losses) < 3:
                return self.embed(batch[0]).square().sum()
            return super().compute_loss(batch)

    module, callback = WarmUp(Recorder()), FANoise(alpha=1.0)
    fit(module, [callback])
    assert callback._source.draws == 3
    messages = [str(w.message) for w in recwarn if "added no noise" in str(w.message)]
    assert len(messages) == 1
    assert "in the first training batch" in messages[0]


@pytest.mark.parametrize("compiled", ["function", "submodule", "in place"])
def test_a_loss_in_what_was_compiled_and_called_before_the_fit_gets_noise(compiled):
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = InfoNCE(
                0.1
            )  # keeps nothing: a change of its state would be a reason to recompile

        def forward(self, query, target):
            return self.criterion(query, target) * 1.0

    class Outer(PlainModule):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.inner = Inner()
            self.run = self.inner
            if compiled == "function":
                del self.run
                self.run = torch.compile(lambda *args: self.inner(*args), backend="eager")
            elif compiled == "submodule":
                self.run = torch.compile(self.inner, backend="eager")
            else:
                self.inner.compile(backend="eager")

        def compute_loss(self, batch):
            return self.run(self.embed(batch[0]), self.embed(batch[1]))

    module, callback = Outer(), FANoise(alpha=1.0, target="inner.criterion")
    module.compute_loss(Pairs()[:8])
    fit(module, [callback], max_steps=2)
    assert callback._source.draws == 2


# When it logs


class TwoOptimizers(PlainModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.compute_loss(batch))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


class Toy(Encoder):
    embedding_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 8)

    def collate(self, samples):
        raise NotImplementedError

    def forward(self, x):
        return self.net(x)


def contrastive() -> ContrastiveModule:
    module = ContrastiveModule(Toy(), InfoNCE(0.1), lambda p: torch.optim.SGD(p, lr=0.1))
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(
        {"query": {"x": batch[0]}, "target": {"x": batch[1]}}, batch_idx
    )
    return module


def logged(folder, key: str) -> list[int]:
    import csv

    with (folder / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get(key)]


@pytest.mark.parametrize(
    ("make", "every", "accumulate", "expected"),
    [
        (PlainModule, 1, 1, [0, 1, 2, 3, 4, 5]),
        (PlainModule, 2, 1, [1, 3, 5]),
        (PlainModule, 3, 2, [2]),
        (TwoOptimizers, 2, 1, [1, 3, 5]),
        (TwoOptimizers, 3, 1, [2, 5]),
        (contrastive, 2, 1, [1, 3, 5]),
        (contrastive, 1, 3, [0, 1]),
    ],
)
def test_statistics_come_at_the_loggers_steps(tmp_path, make, every, accumulate, expected):
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[FANoise()],
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=every,
        accumulate_grad_batches=accumulate,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(make(), DataLoader(Pairs(), batch_size=8))
    assert logged(tmp_path, "fanoise/effective_rank") == expected
    if make is contrastive:
        assert logged(tmp_path, "train/accuracy") == expected


@pytest.mark.parametrize("options", [{"barebones": True}, {"log_every_n_steps": 0}])
@pytest.mark.parametrize("make", [PlainModule, contrastive])
def test_a_run_without_logging(tmp_path, make, options):
    if "barebones" not in options:
        options = {**options, "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        options["enable_progress_bar"] = False
    callbacks = [FANoise(), SpectrumMonitor(path=tmp_path)]
    trainer = Trainer(max_steps=3, accelerator="cpu", callbacks=callbacks, **options)
    trainer.fit(make(), DataLoader(Pairs(), batch_size=8))
    assert callbacks[0]._source.draws == 3
    assert "fanoise/effective_rank" not in trainer.callback_metrics
    assert not list(tmp_path.iterdir())


def test_a_step_that_takes_the_loader_itself():
    class TakesLoader(PlainModule):
        def training_step(self, dataloader_iter):
            batch, _, _ = next(dataloader_iter)
            return self.compute_loss(batch)

    trainer = fit(TakesLoader(), [FANoise()], log_every_n_steps=1)
    assert "fanoise/effective_rank" in trainer.callback_metrics


def test_a_loss_that_a_hook_calls_between_the_batches_is_no_trouble():
    class Between(PlainModule):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx != 1 else None

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.compute_loss(batch)

    fit(Between(), [FANoise()], log_every_n_steps=1)


def test_the_log_is_quiet_about_what_does_not_get_noise(caplog):
    with caplog.at_level(logging.INFO):
        fit(PlainModule(), [FANoise(alpha=0)])
    assert not [r for r in caplog.records if "FANoise" in r.getMessage()]
