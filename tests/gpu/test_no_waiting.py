"""No training step makes the host wait for the device.

Without a device, fake tensors say that they are on one: they have shapes and no values, and take the branches
of the code that a CUDA device takes. Their backward pass needs a driver; tensors on the meta device, which
have no values either, stand in for them there.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch
from gpu.waits import NoWaiting, Waited
from lightning.pytorch import Callback
from plain_module import DIM, PlainModule, fit
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from fanoise_lightning import InfoNCE, MatryoshkaLoss, SigmoidLoss, feature_noise
from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.losses import tiled

STEPS = 5


class FakeSteps(PlainModule):
    """Every step after the first has its features on a CUDA device that is not there."""

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__(loss)
        self.watch = NoWaiting()

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:  # FANoise looks at the values of its first features
            return super().training_step(batch, batch_idx)
        with self.fake, self.watch:
            query, target = (torch.randn(16, DIM, device="cuda", requires_grad=True) for _ in range(2))
            assert query.device.type == "cuda"
            self.criterion(query, target)
        return self.net.weight.sum()


class ForgetSkipped(Callback):
    """The count is on the device; FANoise reads it once, at the end of the fit."""

    def __init__(self, noise: FANoise) -> None:
        self.noise = noise

    def on_train_end(self, *_):
        assert self.noise._source.skipped.device.type == "cuda"
        self.noise._source.skipped = 0


@pytest.fixture
def fake(monkeypatch) -> FakeTensorMode:
    real, without_driver = torch.Generator, SimpleNamespace(manual_seed=lambda seed: None)

    def generator(device="cpu"):
        return without_driver if torch.device(device).type == "cuda" else real(device)

    monkeypatch.setattr(torch, "Generator", generator)
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scaling": "linear"},
        {"scaling": "uniform"},
        {"energy": "constant"},
        {"relative": True, "renormalize": True},
        {"momentum": 0.9},
        {"momentum": 0.9, "energy": "constant"},
        {"every_n_steps": 2},
        {"warmup_steps": 3, "sides": ["query"]},
    ],
    ids=str,
)
def test_the_callback_never_waits(options, fake):
    noise, module = FANoise(alpha=0.1, **options), FakeSteps()
    module.fake = fake
    fit(module, [noise, ForgetSkipped(noise)], max_steps=STEPS, log_every_n_steps=100)
    assert noise._source.draws == STEPS
    assert module.watch.seen > 10 * (STEPS - 1)


@pytest.mark.parametrize("scaling", [lambda s: s**0.7], ids=["a function"])
def test_a_law_that_is_a_function_waits_for_its_svd(scaling, fake):
    with fake, NoWaiting(), pytest.raises(Waited, match="svd"):
        feature_noise(torch.randn(16, DIM, device="cuda"), scaling=scaling)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.linalg.eigh(x @ x.T),
        lambda x: torch.linalg.svdvals(x),
        lambda x: torch.equal(x, x + 1),
    ],
)
def test_what_waits_is_noticed(wait, fake):
    with fake, NoWaiting(), pytest.raises(Waited):
        wait(torch.randn(4, 4, device="cuda"))


LOSSES = {
    "InfoNCE": lambda: InfoNCE(),
    "symmetric, learnable": lambda: InfoNCE(0.07, symmetric=True, learnable_temperature=True),
    "smoothed": lambda: InfoNCE(label_smoothing=0.1),
    "SigmoidLoss": SigmoidLoss,
    "MatryoshkaLoss": lambda: MatryoshkaLoss(InfoNCE(), [4, 8]),
}


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_waits_in_either_pass(name, ids, blocks, monkeypatch):
    monkeypatch.setattr(
        torch, "is_autocast_enabled", lambda device: False
    )  # the meta device knows no autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    if blocks:
        monkeypatch.setattr(tiled, "MIN_ROWS", 3)
        monkeypatch.setattr(tiled, "MAX_LOGITS", 1)
    loss = LOSSES[name]().to("meta")
    query, target, negatives = (
        torch.empty(rows, DIM, device="meta", requires_grad=True) for rows in (8, 8, 4)
    )
    numbers = {"target_ids": torch.empty(8, dtype=torch.long, device="meta")} if ids else {}
    with NoWaiting() as watch:
        noisy = [F.normalize(x, dim=1) + feature_noise(x) for x in (query, target, negatives)]
        loss(*noisy, **numbers).backward()
    assert query.grad.shape == (8, DIM)
    assert watch.seen > 50


def test_a_step_passes_torchs_own_check(cuda):
    class Checked(PlainModule):
        def training_step(self, batch, batch_idx):
            if batch_idx:
                torch.cuda.set_sync_debug_mode("error")
            return self.compute_loss(batch)

        def on_after_backward(self):
            torch.cuda.set_sync_debug_mode("default")

    for options in ({}, {"scaling": "linear"}, {"momentum": 0.9}, {"every_n_steps": 2}):
        noise = FANoise(alpha=0.1, **options)
        try:
            fit(Checked(), [noise], max_steps=STEPS, accelerator="gpu", devices=1, log_every_n_steps=100)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert noise._source.draws == STEPS
