"""A run that is stopped anywhere and resumed sees the batches that an unbroken run sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_roots import Recorder, collate, make_root, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from fanoise_lightning.data import MMEBDataModule

EPOCHS, BATCHES = 3, 6  # 36 rows in batches of 6


def fit(root: Path, workers: int = 0, batch_size: int = 6, **options: Any) -> list[list[int]]:
    resume, callbacks = options.pop("ckpt_path", None), options.pop("callbacks", [])
    recorder = Recorder()
    trainer = make_trainer(
        root,
        **{"max_epochs": EPOCHS, "limit_val_batches": 0, **options},
        callbacks=callbacks,
        enable_checkpointing=bool(callbacks),
    )
    data = MMEBDataModule(root, batch_size=batch_size, num_workers=workers)
    trainer.fit(recorder, datamodule=data, ckpt_path=resume)
    return recorder.trained


def checkpoints(root: Path, workers: int = 0, **options: Any) -> list[tuple[int, Path]]:
    """Train with checkpoints after every step: (batches seen, file)."""
    every = ModelCheckpoint(root / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(root, workers, callbacks=[every], **options)
    found = [(int(file.stem.split("=")[1]), file) for file in (root / "saved").glob("*.ckpt")]
    scale = options.get("accumulate_grad_batches", 1)
    return sorted((step * scale, file) for step, file in found)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit_val_batches": 1.0, "val_check_interval": 2},
        {"max_steps": 16},
        {"accumulate_grad_batches": 2},
    ],
    ids=["plain", "validation inside", "max_steps", "accumulation"],
)
def test_resume_after_any_step_equals_no_stop(root: Path, options: dict[str, Any]) -> None:
    unbroken = fit(root, **options)
    saved = checkpoints(root, **options)
    assert len(saved) == len(unbroken) // options.get("accumulate_grad_batches", 1)
    for seen, file in saved:
        assert fit(root, ckpt_path=file, **options) == unbroken[seen:], f"after batch {seen}"


@pytest.mark.slow
def test_resume_with_workers_and_with_another_number_of_them(root: Path) -> None:
    unbroken = fit(root, workers=2)
    assert unbroken == fit(root, workers=0)
    saved = dict(checkpoints(root, workers=2))
    for seen, workers in ((1, 2), (8, 2), (12, 1), (5, 0)):  # in an epoch, at its end, over another number
        assert fit(root, workers=workers, ckpt_path=saved[seen]) == unbroken[seen:]


def test_a_resumed_run_can_be_resumed_again(root: Path) -> None:
    unbroken = fit(root)
    first = dict(checkpoints(root))[2]
    again = ModelCheckpoint(root / "again", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(root, ckpt_path=first, callbacks=[again])
    for seen in (4, 6, 10):
        assert fit(root, ckpt_path=root / "again" / f"step={seen}.ckpt") == unbroken[seen:]


def test_epochs_differ_and_each_sees_every_row(root: Path) -> None:
    unbroken = fit(root)
    epochs = [unbroken[first : first + BATCHES] for first in range(0, EPOCHS * BATCHES, BATCHES)]
    rows = [sorted(row for batch in epoch for row in batch) for epoch in epochs]
    assert rows == [[*range(1000, 1024), *range(2000, 2012)]] * EPOCHS
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_checkpoint_of_other_batches_is_refused(root: Path) -> None:
    saved = dict(checkpoints(root))
    with pytest.raises(ValueError, match="after batch 2 of 6 of epoch 0, but the epoch now has 9 batches"):
        fit(root, batch_size=4, ckpt_path=saved[2])


def test_the_order_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    data = MMEBDataModule(make_root(tmp_path), batch_size=6, num_workers=0, collate=collate)
    data.setup("fit")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), *data.predict_dataloader()):
        list(loader)
    assert torch.equal(before, torch.get_rng_state())
