"""Lightning's private parts are still there, do what the library relies on, and are used in one file."""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from fanoise_lightning import _lightning

ROOT = Path(__file__).parents[1]


class Recorder(Callback):
    """What the functions say after each batch."""

    def __init__(self) -> None:
        self.should_log: list[bool] = []
        self.stepped: list[int] = []
        self.accumulating: list[bool] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.should_log.append(_lightning.should_log(trainer))
        self.stepped.append(_lightning.batches_that_stepped(trainer))
        self.accumulating.append(_lightning.is_accumulating(trainer))


class Logger(DummyLogger):
    """The steps of what the trainer logs."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "loss" in metrics:
            self.steps.append(step)


class Logging(BoringModel):
    """Logs its loss in each batch; with two optimisers, ``global_step`` moves by two."""

    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        self.count = optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log("loss", loss)
        if self.automatic_optimization:
            return loss
        loss.backward()
        for optimizer in self.optimizers():
            optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(self.count)]


def fit(model: LightningModule, **options: Any) -> tuple[Recorder, Logger]:
    recorder, logger = Recorder(), Logger()
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[recorder],
        logger=logger,
        max_epochs=1,
        limit_train_batches=5,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(model)
    return recorder, logger


@pytest.mark.parametrize("optimizers", [1, 2])
def test_should_log_is_what_the_loggers_do(optimizers):
    recorder, logger = fit(Logging(optimizers), log_every_n_steps=2)
    told = [step for step, logs in zip(recorder.stepped, recorder.should_log) if logs]
    assert told == logger.steps == [1, 3]


def test_without_an_interval_nothing_is_to_be_logged():
    assert not any(fit(Logging(), log_every_n_steps=0)[0].should_log)


def test_the_steps_are_those_that_loggers_write():
    recorder, logger = fit(Logging(), log_every_n_steps=1, accumulate_grad_batches=2)
    assert recorder.stepped == [0, 0, 1, 1, 2]
    assert logger.steps == [0, 1, 2]


def test_a_fit_accumulates_until_it_steps_and_steps_with_the_last_batch():
    assert fit(Logging(), accumulate_grad_batches=2)[0].accumulating == [True, False, True, False, False]


def test_paths_are_local_or_not():
    assert _lightning.is_local("runs/last.ckpt")
    assert _lightning.is_local(Path("runs/last.ckpt"))
    assert not _lightning.is_local("memory://runs/last.ckpt")


def test_a_checkpoint_is_read_without_its_tensors(tmp_path):
    path = tmp_path / "saved.ckpt"
    torch.save({"weight": torch.ones(2, 3), "hyper_parameters": {"size": 3}}, path)
    for source in (path, str(path), path.open("rb")):
        checkpoint = _lightning.load_checkpoint(source, weights_only=True)
        assert (checkpoint["weight"].device.type, checkpoint["weight"].shape) == ("meta", (2, 3))
        assert checkpoint["hyper_parameters"] == {"size": 3}


def test_a_checkpoint_with_objects_is_read_only_when_asked(tmp_path):
    torch.save({"object": Recorder()}, tmp_path / "saved.ckpt")
    with pytest.raises(Exception, match="weights_only"):
        _lightning.load_checkpoint(tmp_path / "saved.ckpt", weights_only=True)
    assert type(_lightning.load_checkpoint(tmp_path / "saved.ckpt", weights_only=False)["object"]) is Recorder


def test_hyperparameters_are_read_from_both_kinds_of_files(tmp_path):
    with (tmp_path / "tags.CSV").open("w", newline="") as file:
        csv.writer(file).writerows([("key", "value"), ("size", 3)])
    (tmp_path / "hparams.yaml").write_text("size: 3\n")
    assert _lightning.load_hparams_file(tmp_path / "tags.CSV")["size"] == 3
    assert _lightning.load_hparams_file(tmp_path / "hparams.yaml") == {"size": 3}


class Sized(BoringModel):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()


class CLI(_lightning.CheckpointMerger, LightningCLI):
    def merge_checkpoint(self) -> None:
        self.parsed_but_not_built = hasattr(self, "config") and not hasattr(self, "model")


def test_a_cli_merges_checkpoints_before_it_builds():
    options = {"args": ["--trainer.logger=false", "--trainer.accelerator=cpu"], "run": False}
    assert CLI(Sized, save_config_callback=None, **options).parsed_but_not_built


def test_a_cli_names_the_instantiator_that_reads_its_config():
    options = {"args": ["--model=Sized", "--trainer.logger=false", "--trainer.accelerator=cpu"], "run": False}
    cli = CLI(Sized, subclass_mode_model=True, save_config_callback=None, **options)
    assert cli.model.hparams[_lightning.INSTANTIATOR] == _lightning.INSTANTIATE_MODULE
    assert cli.model.hparams[_lightning.CLASS_PATH].endswith(".Sized")


def test_a_module_is_rebuilt_by_the_instantiator(tmp_path):
    hyperparameters = {_lightning.INSTANTIATOR: _lightning.INSTANTIATE_MODULE, "size": 4}
    checkpoint = {"state_dict": Sized().state_dict(), "hyper_parameters": hyperparameters}
    torch.save(checkpoint | {"pytorch-lightning_version": "2.6.0"}, tmp_path / "saved.ckpt")
    assert Sized.load_from_checkpoint(tmp_path / "saved.ckpt").hparams.size == 4


def test_a_backward_pass_is_known_from_the_inside():
    seen = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: seen.append(_lightning.in_backward()))
    assert not _lightning.in_backward()
    y.backward()
    assert seen == [True]
    assert not _lightning.in_backward()


# No other file


def private_names() -> set[str]:
    """The names with an underscore of what Lightning hands out."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    loop = trainer.fit_loop
    objects = [trainer, trainer.strategy, loop, loop.epoch_loop, loop.epoch_loop.automatic_optimization]
    objects += [trainer._logger_connector, trainer._checkpoint_connector, trainer._callback_connector]
    objects += [LightningModule(), LightningDataModule(), LightningCLI]
    known = {name for thing in objects for name in dir(thing)} - {*dir(nn.Module()), *dir(object)}
    hyperparameters = {"_instantiator", "_class_path"}
    return {name for name in known if name.startswith("_") and not name.endswith("__")} | hyperparameters


def uses(path: Path, private: set[str]) -> Iterator[str]:
    """Where a file imports, reads, names or overrides one of them; its classes' own attributes aside."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    stored = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    own = {node.attr for node in stored if _is_self(node.value)}
    for node in nodes:
        found: list[Any] = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning."):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            found = [name for name in names if name.startswith("_")]
        elif isinstance(node, ast.Attribute) and node.attr in private:
            found = [] if _is_self(node.value) and node.attr in own else [node.attr]
        elif isinstance(node, ast.Constant) and node.value in private - own:
            found = [node.value]
        elif isinstance(node, ast.ClassDef):
            found = [part.name for part in node.body if getattr(part, "name", None) in private]
        yield from (f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in found)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_no_other_file_uses_private_names_of_lightning():
    private = private_names()
    assert {"_should_accumulate", "_parse_ckpt_path", "_trainer", "_batches_that_stepped"} <= private
    home = ROOT / "fanoise_lightning" / "_lightning.py"
    assert len(list(uses(home, private))) >= 5  # the search finds what is there
    files = [*(ROOT / "fanoise_lightning").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]
    assert [use for path in files if path != home for use in uses(path, private)] == []
