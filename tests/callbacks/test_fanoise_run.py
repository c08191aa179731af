from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from plain_module import PlainModule, Recorder, fit
from processes import run_on_ranks
from torch.nn import functional as F

from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.callbacks._source import _is_broken

# Broken features


class BreaksAt(Callback):
    """Makes the embeddings of one batch bad."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.step:
            for x in batch:
                x.fill_(self.value)


class Careful(PlainModule):
    """Skips the update on a loss that is not finite; embeds without bias, so zeros stay zeros."""

    def embed(self, x):
        return F.linear(x, self.net.weight)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if loss.isfinite() else None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"every_n_steps": 2}, {"scaling": "uniform"}, {"scaling": torch.sqrt}],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_broken_batch_passes_unchanged_and_is_counted(value, options):
    module = Careful(Recorder())
    callback = FANoise(alpha=1.0, **options)
    with pytest.warns(UserWarning, match="left 1 training batches without noise"):
        fit(module, [BreaksAt(2, value), callback], max_steps=5, log_every_n_steps=1)
    query = module.criterion.calls[2][0]
    assert torch.equal(query.nan_to_num(1e3), torch.full_like(query, value).nan_to_num(1e3)) or (
        value == math.inf and not query.isfinite().any()
    )
    assert int(callback._source.skipped) == 1
    for query, target in module.criterion.calls[3:]:
        assert query.isfinite().all()
        assert target.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_and_noise_that_are_not_finite_are_broken(dtype):
    x, noise = (torch.linspace(-1, 1, 6).view(2, 3).to(dtype) for _ in "xn")
    assert not _is_broken(x, noise)
    assert not _is_broken(x, 0 * noise)  # alpha may be 0
    assert _is_broken(0 * x, noise)
    for bad in (math.nan, math.inf, -math.inf):
        assert _is_broken(x, noise.index_fill(0, torch.tensor(1), bad))
        assert _is_broken(x.index_fill(0, torch.tensor(1), bad), noise)


def test_a_finite_batch_stays_finite_where_the_decomposition_fails(monkeypatch):
    def fails(*args):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    module, callback = PlainModule(), FANoise()
    with pytest.warns(UserWarning, match="left 3 training batches"):
        fit(module, [callback], max_steps=3)
    clean = PlainModule()
    fit(clean, max_steps=3)
    assert module.losses == clean.losses


# Logging, resume, ranks


def test_rank_ratio_and_count_are_logged():
    trainer = fit(PlainModule(), [FANoise(alpha=0.5, scaling="uniform")], log_every_n_steps=1)
    metrics = trainer.callback_metrics
    assert 1 <= metrics["fanoise/effective_rank"] <= 8
    assert metrics["fanoise/noise_to_signal"].item() == pytest.approx(0.5, rel=0.3)  # unit rows
    assert metrics["fanoise/skipped_batches"] == 0


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"every_n_steps": 4}, {"momentum": 0.5, "every_n_steps": 3}, {"seed": 5}],
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, options):
    unbroken, stopped, resumed = PlainModule(), PlainModule(), PlainModule()
    options = {"alpha": 0.5, "seed": 11, **options}
    fit(unbroken, [FANoise(**options)], max_steps=12)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    fit(stopped, [FANoise(**options), checkpoint], max_steps=6)
    callback = FANoise(**options)
    fit(resumed, [callback], max_steps=12, ckpt_path=str(tmp_path / "last.ckpt"))
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert stopped.losses + resumed.losses == unbroken.losses


def test_an_unseeded_run_resumes_with_its_own_random_seed(tmp_path, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    first = FANoise()
    fit(PlainModule(), [first, checkpoint], max_steps=2)
    second = FANoise()
    fit(PlainModule(), [second], max_steps=4, ckpt_path=str(tmp_path / "last.ckpt"))
    assert second._resolved_seed == first._resolved_seed
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]


def test_two_ranks_draw_different_noise():
    def queries(rank: int, *callbacks: Callback) -> torch.Tensor:
        module = PlainModule(Recorder())
        ranks = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}  # the same rows for both
        fit(module, callbacks, max_steps=1, **ranks)
        return module.criterion.calls[0][0]

    def on_rank(rank: int) -> list[torch.Tensor]:
        return [queries(rank), queries(rank, FANoise(alpha=1.0, seed=0))]

    first, second = run_on_ranks(on_rank, 2)
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1], second[1])
