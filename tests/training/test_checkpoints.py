from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fanoise_lightning.cli import FANoiseCLI
from fanoise_lightning.training.checkpoints import AtomicCheckpointIO, read_hyperparameters

RECIPE = Path(__file__).parents[2] / "examples" / "configs" / "emoji.yaml"


@pytest.fixture
def path(tmp_path) -> Path:
    """Of a checkpoint that says it is the old one."""
    AtomicCheckpointIO().save_checkpoint({"is": "old"}, tmp_path / "run" / "last.ckpt")
    return tmp_path / "run" / "last.ckpt"


def killed_while_it_saves(path: Path) -> None:
    def save() -> None:
        def half(checkpoint, file) -> None:
            file.write(b"half of a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
        AtomicCheckpointIO().save_checkpoint({"is": "new"}, path)

    process = multiprocessing.get_context("fork").Process(target=save)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def read(path: Path) -> dict[str, str]:
    return AtomicCheckpointIO().load_checkpoint(path)


def test_a_kill_in_the_middle_of_a_write_leaves_the_checkpoint_before(path):
    killed_while_it_saves(path)
    assert read(path) == {"is": "old"}


def test_half_a_checkpoint_is_not_found_as_the_last_one(path):
    path.unlink()
    killed_while_it_saves(path)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt.tmp"]
    callback = ModelCheckpoint(path.parent, save_last=True)
    assert not callback._find_last_checkpoints(Trainer(logger=False, callbacks=[callback], accelerator="cpu"))


def test_the_next_write_takes_the_place_of_what_a_kill_left(path):
    killed_while_it_saves(path)
    AtomicCheckpointIO().save_checkpoint({"is": "new"}, path)
    assert read(path) == {"is": "new"}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_write_that_fails_leaves_the_checkpoint_before_and_nothing_else(path, monkeypatch):
    def full(checkpoint, file) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        AtomicCheckpointIO().save_checkpoint({"is": "new"}, path)
    monkeypatch.undo()
    assert read(path) == {"is": "old"}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_the_data_is_on_the_disk_before_the_name_is_there(path, monkeypatch):
    synced = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file)), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (synced.append("replaced"), replace(*names)))
    AtomicCheckpointIO().save_checkpoint({"is": "new"}, path)
    assert [synced[0].st_ino, synced[0].st_size] == [path.stat().st_ino, path.stat().st_size]
    assert synced[1:] == ["replaced"]


def test_a_link_is_replaced_and_what_it_points_to_stays(path):
    link = path.with_name("last-v1.ckpt")
    link.symlink_to(path.name)
    AtomicCheckpointIO().save_checkpoint({"is": "new"}, link)
    assert read(path) == {"is": "old"}
    assert read(link) == {"is": "new"}


def test_a_checkpoint_that_cannot_be_read_is_named(path):
    whole = path.read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path} \({len(content)} bytes\) cannot be read"):
            read(path)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
        read(tmp_path / "absent.ckpt")


def test_other_file_systems_are_lightnings(monkeypatch):
    saved = []
    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", lambda self, *args: saved.append(args))
    AtomicCheckpointIO().save_checkpoint({}, "memory://run/last.ckpt")
    assert saved == [({}, "memory://run/last.ckpt", None)]


def test_a_trainer_takes_it_as_a_plugin(tmp_path):
    options = {"logger": False, "accelerator": "cpu", "max_steps": 2, "enable_progress_bar": False}
    options |= {"default_root_dir": tmp_path, "plugins": [AtomicCheckpointIO()], "limit_val_batches": 0}
    Trainer(**options, callbacks=[ModelCheckpoint(tmp_path, save_last=True)]).fit(BoringModel())
    assert read(tmp_path / "last.ckpt")["global_step"] == 2
    module = BoringModel()
    resumed = Trainer(**{**options, "max_steps": 3})
    resumed.fit(module, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.global_step == 3


def arguments(tmp_path: Path, *more: str) -> list[str]:
    return [f"--config={RECIPE}", f"--trainer.logger.init_args.save_dir={tmp_path}", *more]


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr("sys.argv", ["fanoise"])  # Lightning warns of pytest's


def test_the_command_writes_whole_checkpoints(tmp_path):
    cli = FANoiseCLI(arguments(tmp_path), run=False)
    assert isinstance(cli.trainer.strategy.checkpoint_io, AtomicCheckpointIO)


def test_the_command_keeps_the_users_checkpoint_io(tmp_path):
    plugin = "--trainer.plugins=lightning.pytorch.plugins.io.AsyncCheckpointIO"
    cli = FANoiseCLI(arguments(tmp_path, plugin), run=False)
    assert type(cli.trainer.strategy.checkpoint_io).__name__ == "AsyncCheckpointIO"


def test_the_command_names_a_checkpoint_that_cannot_be_read(path, tmp_path):
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{path} \(100 bytes\) cannot be read"):
        FANoiseCLI(["fit", *arguments(tmp_path), f"--ckpt_path={path}"])


KINDS = [b"", b"sku,caption\n1,a red mug\n", b"hello\nworld\n", b"a: 1\n", b"\x89PNG\r\n\x1a\n", bytes(5000)]
KINDS += [b"PK\x05\x06" + bytes(18), pickle.dumps({"a": 1}), pickle.dumps(print)]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", KINDS)
def test_a_file_of_another_kind_is_named_and_nothing_in_it_is_advised_to_be_run(tmp_path, content):
    path = tmp_path / "products.csv"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"the checkpoint .*products\.csv \(.* cannot be read; .*\(.+\)$"
    ) as caught:
        read_hyperparameters(path)
    assert "likely succeed" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.zeros(3), [1, 2], {}, {"weight": torch.zeros(3)}])
def test_what_is_not_a_checkpoint_of_lightning_is_named(tmp_path, value):
    torch.save(value, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt is not a checkpoint of Lightning: it has no `"):
        read_hyperparameters(tmp_path / "weights.pt")
