from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fanoise_lightning.callbacks.fanoise import FANoise
from fanoise_lightning.callbacks.spectrum_monitor import SpectrumMonitor

B, D = 6, 4


class DotLoss(nn.Module):
    def forward(self, query: Tensor, target: Tensor) -> Tensor:
        return -(query * target).sum()


class Contrastive(LightningModule):
    """Never heard of us; its features are the batch and the batch turned round, whatever was learned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.loss = DotLoss()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        batch = batch + 0 * self.weight
        return self.loss(batch, target=batch.flip(1))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.loss(batch, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class FixedNoise(Callback):
    """Adds the same matrix to the queries in every call."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def add(loss: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            return (args[0] + noise(), *args[1:]), kwargs

        self.handle = pl_module.loss.register_forward_pre_hook(add, with_kwargs=True)  # type: ignore[union-attr]


def noise() -> Tensor:
    return 0.1 * torch.randn(B, D, generator=torch.Generator().manual_seed(9))


def batches(count: int = 5) -> Tensor:
    return torch.randn(count * B, D, generator=torch.Generator().manual_seed(0))


def loader(data: Tensor | None = None) -> DataLoader:
    return DataLoader(batches() if data is None else data, batch_size=B)  # type: ignore[arg-type]


def fit(
    root: Path, *callbacks: Callback, module: Any = None, data: Tensor | None = None, **settings: Any
) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 1, "enable_checkpointing": False, **quiet, **settings}
    trainer = Trainer(accelerator="cpu", default_root_dir=root, callbacks=list(callbacks), **settings)
    module = module or Contrastive()
    trainer.fit(module, loader(data), loader())
    return module


def svd(features: Tensor) -> Any:
    return pytest.approx(torch.linalg.svdvals(features.double()).tolist(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("monitor_first", [True, False])
def test_clean_noisy_and_noise_are_told_apart_in_any_order(tmp_path: Path, monitor_first: bool) -> None:
    monitor = SpectrumMonitor(every_n_steps=1)
    callbacks: list[Callback] = [monitor, FixedNoise()]
    fit(tmp_path, *(callbacks if monitor_first else callbacks[::-1]))
    assert [entry["step"] for entry in monitor.spectra] == [0, 1, 2, 3, 4]
    for entry, batch in zip(monitor.spectra, batches().split(B)):
        query, target = entry["sides"]["query"], entry["sides"]["target"]
        assert query["clean"] == svd(batch)
        assert query["noisy"] == svd(batch + noise())
        assert query["noise"] == svd(noise())
        assert query["noise_rms"] == pytest.approx(noise().square().mean().sqrt().item(), rel=1e-4)
        assert target["clean"] == svd(batch.flip(1))
        assert "noisy" not in target


def test_the_noise_of_fanoise_is_seen(tmp_path: Path) -> None:
    before, after = (
        SpectrumMonitor(every_n_steps=2),
        SpectrumMonitor(every_n_steps=2, path=str(tmp_path / "b")),
    )
    fit(tmp_path, before, FANoise(alpha=0.5, seed=1), after)
    assert before.spectra == after.spectra
    for side in ("query", "target"):
        assert before.spectra[0]["sides"][side]["noise"][0] > 0.01


def test_without_noise_there_are_clean_spectra_only(tmp_path: Path) -> None:
    monitor = SpectrumMonitor(every_n_steps=1)
    fit(tmp_path, monitor)
    assert set(monitor.spectra[0]["sides"]["query"]) == {"batch_size", "dim", "clean"}


def test_alignment_and_uniformity_are_those_of_the_clean_features(tmp_path: Path) -> None:
    monitor = SpectrumMonitor(every_n_steps=1)
    fit(tmp_path, monitor, FixedNoise())
    for entry, batch in zip(monitor.spectra, batches().split(B)):
        query, target = F.normalize(batch, dim=1), F.normalize(batch.flip(1), dim=1)
        assert entry["alignment"] == pytest.approx((query - target).square().sum(1).mean().item(), rel=1e-4)
        for side, x in (("query", query), ("target", target)):
            potential = torch.pdist(x).square().mul(-2).exp().mean().log().item()
            assert entry["uniformity"][side] == pytest.approx(potential, rel=1e-4)


def test_a_batch_of_one_row_has_no_uniformity(tmp_path: Path) -> None:
    monitor = SpectrumMonitor(every_n_steps=1)
    fit(tmp_path, monitor, data=batches()[: B + 1])
    assert ["uniformity" in entry for entry in monitor.spectra] == [True, False]


def test_spectra_and_figure_are_written(tmp_path: Path) -> None:
    monitor = SpectrumMonitor(every_n_steps=2)
    fit(tmp_path, monitor, FixedNoise())
    written = json.loads((tmp_path / "spectrum.json").read_text())
    assert written == {"skipped_batches": 0, "spectra": monitor.spectra}
    assert [entry["step"] for entry in written["spectra"]] == [0, 2, 4]
    assert (tmp_path / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"spectrum.json", "spectrum.png"}


def test_by_default_it_looks_when_the_trainer_logs(tmp_path: Path) -> None:
    monitor = SpectrumMonitor()
    fit(tmp_path, monitor, log_every_n_steps=3)
    assert [entry["step"] for entry in monitor.spectra] == [0, 3]


def test_accumulated_gradients_are_looked_at_once_a_step(tmp_path: Path) -> None:
    monitor = SpectrumMonitor(every_n_steps=1)
    fit(tmp_path, monitor, data=batches(6), accumulate_grad_batches=2)
    assert [entry["step"] for entry in monitor.spectra] == [0, 1, 2]


def test_only_training_is_looked_at(tmp_path: Path) -> None:
    """Validation calls the loss, too, in the sanity check and after two steps."""
    monitor = SpectrumMonitor(every_n_steps=1)
    fit(tmp_path, monitor, val_check_interval=2)
    assert len(monitor.spectra) == 5


def test_batches_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    data = batches(3)
    data[B] = float("nan")
    data[2 * B] = float("inf")
    monitor = SpectrumMonitor(every_n_steps=1)
    fit(tmp_path, monitor, data=data)
    assert [entry["step"] for entry in monitor.spectra] == [0]
    assert json.loads((tmp_path / "spectrum.json").read_text())["skipped_batches"] == 2


def test_a_run_without_a_finite_batch_warns_and_draws_nothing(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="it saw 2 batches with features that are not finite"):
        fit(tmp_path, SpectrumMonitor(every_n_steps=1), data=torch.full((2 * B, D), float("nan")))
    assert not list(tmp_path.iterdir())


def test_nothing_stays_behind(tmp_path: Path) -> None:
    module = fit(tmp_path, SpectrumMonitor())
    assert not module.loss._forward_hooks
    assert not module.loss._forward_pre_hooks


def test_a_crash_leaves_the_spectra_and_no_hooks(tmp_path: Path) -> None:
    class Unlucky(Contrastive):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if batch_idx == 2:
                raise RuntimeError("unlucky")
            return super().training_step(batch, batch_idx)

    module = Unlucky()
    with pytest.raises(RuntimeError, match="unlucky"):
        fit(tmp_path, SpectrumMonitor(every_n_steps=1), module=module)
    assert not module.loss._forward_hooks
    assert not module.loss._forward_pre_hooks
    assert len(json.loads((tmp_path / "spectrum.json").read_text())["spectra"]) == 2
    assert (tmp_path / "spectrum.png").exists()


def test_a_second_fit_starts_anew(tmp_path: Path) -> None:
    monitor = SpectrumMonitor(every_n_steps=1)
    module = fit(tmp_path, monitor)
    fit(tmp_path, monitor, module=module)
    assert [entry["step"] for entry in monitor.spectra] == [0, 1, 2, 3, 4]


def test_a_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    monitor = SpectrumMonitor()
    fit(tmp_path, monitor, fast_dev_run=True)
    assert len(monitor.spectra) == 1
    assert not list(tmp_path.iterdir())


def test_the_loss_can_be_named(tmp_path: Path) -> None:
    monitor = SpectrumMonitor(target="loss")
    fit(tmp_path, monitor)
    assert monitor.spectra
    with pytest.raises(ValueError, match="target='criterion'"):
        fit(tmp_path, SpectrumMonitor(target="criterion"))


def test_every_n_steps_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`every_n_steps` must be at least 1, got 0"):
        SpectrumMonitor(every_n_steps=0)
