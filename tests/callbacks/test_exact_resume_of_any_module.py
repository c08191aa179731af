"""Runs of modules that know nothing of this library, interrupted after every batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn

from fanoise_lightning.callbacks import ExactResume

KEY = "fanoise_lightning.ExactResume"


class Plain(LightningModule):
    """Nothing of this library: a regression with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.layers(batch) - batch.sum(1, keepdim=True)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Batches:
    """Five batches an epoch, and the place in them for a checkpoint."""

    def __init__(self) -> None:
        self.place = 0

    def __len__(self) -> int:
        return 5

    def __iter__(self):
        for place in range(self.place % 5, 5):
            self.place = place + 1
            yield torch.randn(6, 4, generator=torch.Generator().manual_seed(place))

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class SaveEach(Callback):
    """A checkpoint after every batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.fit_loop.total_batch_idx}.ckpt")


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def fit(*callbacks: Callback, ckpt_path: Path | None = None, kind: type[Plain] = Plain) -> Plain:
    seed_everything(0 if ckpt_path is None else 1, verbose=False)
    module = kind()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        accumulate_grad_batches=2,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, Batches(), ckpt_path=ckpt_path)
    return module


def test_a_module_of_others_is_resumed_exactly_after_every_batch(tmp_path):
    unbroken = fit(ExactResume(), SaveEach(tmp_path))
    for number in range(14):
        assert same(fit(ExactResume(), ckpt_path=tmp_path / f"{number}.ckpt"), unbroken), number
    assert not same(fit(ckpt_path=tmp_path / "3.ckpt"), unbroken)


@pytest.mark.parametrize("entry", [{"mine": 1}, {"run_seed": 7}, 7, None])
def test_an_entry_of_the_module_called_resume_is_left_alone(tmp_path, entry):
    class Keeps(Plain):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["resume"] = entry

        def on_load_checkpoint(self, checkpoint):
            assert checkpoint["resume"] == entry

    unbroken = fit(ExactResume(), SaveEach(tmp_path), kind=Keeps)
    for number in (3, 4):  # in the middle of an accumulation, and after it
        assert same(fit(ExactResume(), ckpt_path=tmp_path / f"{number}.ckpt", kind=Keeps), unbroken)


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path):
    unbroken = fit(ExactResume(), SaveEach(tmp_path))
    path = tmp_path / "3.ckpt"
    saved = torch.load(path, weights_only=True)
    torch.save({**{name: value for name, value in saved.items() if name != KEY}, "resume": saved[KEY]}, path)
    assert same(fit(ExactResume(), ckpt_path=path), unbroken)


def test_a_checkpoint_without_the_callback_starts_from_a_seed_of_its_own(tmp_path):
    fit(SaveEach(tmp_path))
    fit(ExactResume(), ckpt_path=tmp_path / "3.ckpt")
