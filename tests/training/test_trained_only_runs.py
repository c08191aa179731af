"""Runs whose checkpoints lack frozen weights: resumed, averaged, tested, and by the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from training.frozen_weights import (
    BUILDERS,
    assert_same,
    change_one_weight,
    data,
    of,
    trainer_of,
    with_frozen_towers,
)

from fanoise_lightning import (
    ContrastiveModule,
    TwoTowerEncoder,
)
from fanoise_lightning.__main__ import main
from fanoise_lightning.training.trained_only import LEFT_OUT

KINDS = ["lora", "frozen towers", "cached features"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_as_one_that_was_not(qwen, clip, tmp_path, kind):
    def fit(steps: int, *callbacks: Any, ckpt_path: Path | None = None, **options: Any) -> ContrastiveModule:
        seed_everything(0, verbose=False)
        module = of(BUILDERS[kind](qwen, clip, tmp_path / "features"), **options)
        trainer_of(*callbacks, max_steps=steps).fit(module, data(), ckpt_path=ckpt_path)
        return module

    unbroken = fit(11, save_frozen=True)
    fit(5, ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=5))
    last = tmp_path / "last.ckpt"
    assert torch.load(last, weights_only=True)[LEFT_OUT]
    assert_same(fit(11, ckpt_path=last), unbroken)


def test_a_moving_average_of_the_weights_is_resumed_too(clip, tmp_path):
    def fit(steps: int, *callbacks: Any, ckpt_path: Path | None = None) -> ContrastiveModule:
        seed_everything(0, verbose=False)
        module, averaging = of(TwoTowerEncoder(clip, lora={"r": 2})), EMAWeightAveraging(decay=0.8)
        trainer = trainer_of(averaging, *callbacks, max_steps=steps)
        trainer.fit(module, data(), ckpt_path=ckpt_path)
        return module

    unbroken = fit(7)
    fit(5, ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=5))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not saved[LEFT_OUT].keys() & saved["current_model_state"].keys()
    assert_same(fit(7, ckpt_path=tmp_path / "last.ckpt"), unbroken)


def test_a_trained_module_is_tested_from_its_best_checkpoint(clip, tmp_path):
    module = of(with_frozen_towers(clip))
    trainer = trainer_of(ModelCheckpoint(tmp_path, every_n_train_steps=2), limit_test_batches=1.0)
    trainer.fit(module, data())
    first = trainer.test(module, data(), ckpt_path="best", verbose=False)
    fresh = ContrastiveModule.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert trainer_of(limit_test_batches=1.0).test(fresh, data(), verbose=False) == first


def test_the_command_leaves_frozen_weights_out_too(clip, own_clip, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fanoise"])  # Lightning warns of pytest's
    recipe = Path(__file__).parents[2] / "examples" / "configs" / "emoji.yaml"

    def run(command: str, *more: str) -> None:
        options = [
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--trainer.max_steps=2",
        ]
        options += ["--data.init_args.num_workers=0", "--data.init_args.batch_size=8"]
        options += [
            f"--trainer.logger.init_args.save_dir={tmp_path}",
            "--data.init_args.eval_subsets=[renderer]",
        ]
        main([command, f"--config={recipe}", *options, *more])

    encoder = ["--model.encoder=fanoise_lightning.TwoTowerEncoder", "--model.encoder.lora={r: 2}"]
    own = [*encoder, f"--model.encoder.model={own_clip}"]
    run("fit", *own, "--trainer.limit_val_batches=0")
    path = next(tmp_path.rglob("last.ckpt"))
    saved = torch.load(path, weights_only=True)
    assert not [name for name in saved["state_dict"] if "base_layer.weight" in name]
    run("validate", *own, f"--ckpt_path={path}")
    change_one_weight(own_clip)
    with pytest.raises(SystemExit, match="not those it was trained with"):
        run("validate", *own, f"--ckpt_path={path}")
    run("fit", *encoder, f"--model.encoder.model={clip}", "--model.save_frozen=true")
    whole = max(tmp_path.rglob("last.ckpt"), key=lambda file: file.stat().st_mtime)
    assert LEFT_OUT not in torch.load(whole, weights_only=True)
