"""Runs of the command line: killed at random, and started again by the same command."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest
import torch

from fanoise_lightning.__main__ import main

ROOT = Path(__file__).parents[2]
KILL = ROOT / "benchmarks" / "kill.py"
RECIPE = ROOT / "examples" / "configs" / "emoji.yaml"


@pytest.mark.slow
def test_a_killed_run_ends_as_an_unbroken_one(monkeypatch, capsys):
    """The benchmark that kills thirty times, twice."""
    monkeypatch.setattr("sys.argv", [str(KILL), "--kills=2", "--variants", "plain"])
    runpy.run_path(str(KILL), run_name="__main__")  # its runs are forked: they import nothing again
    assert "as many exact continuations" in capsys.readouterr().out


def test_one_command_starts_a_run_and_goes_on_with_it(tmp_path, tiny_clip, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fanoise"])  # Lightning warns of pytest's
    command = [
        "fit",
        f"--config={RECIPE}",
        f"--model.encoder.init_args.model={tiny_clip}",
        "--data.init_args.batch_size=8",
        "--data.init_args.num_workers=0",
        "--data.init_args.train_subsets=[keywords]",
        "--data.init_args.eval_subsets=[keywords]",
        "--trainer.accelerator=cpu",
        "--trainer.limit_val_batches=0",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.callbacks.init_args.every_n_train_steps=1",
        f"--trainer.logger.init_args.save_dir={tmp_path}",
        "--trainer.logger.init_args.version=run",
        "--ckpt_path=last",
    ]
    for steps in (2, 3, 4):
        main([*command, f"--trainer.max_steps={steps}"])
    folder = tmp_path / "emoji" / "run"
    assert [path.name for path in folder.parent.iterdir()] == ["run"]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    steps = {path.name: logged_steps(path) for path in folder.glob("metrics*.csv")}
    assert steps == {"metrics.1.csv": [0, 1], "metrics.2.csv": [2], "metrics.csv": [3]}


def logged_steps(path: Path) -> list[int]:
    with path.open() as file:
        return sorted({int(row["step"]) for row in csv.DictReader(file)})
