"""Fits under every precision, with chunks, dropout, compiled code: on the device as on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from plain_module import DIM, Pairs, PlainModule, fit
from torch import Tensor, nn
from torch.nn import functional as F

from fanoise_lightning import InfoNCE
from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.training.grad_cache import embed_in_chunks

SCALE = 2.0**10  # torch's own, 2^16, may overflow in the first step


class Recording(PlainModule):
    """Keeps its losses, its gradients and what the loss was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[Tensor] = []
        self.criterion.register_forward_hook(self.record)
        self.seen: list[torch.dtype] = []

    def record(self, loss: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen.append(args[0].dtype)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradients.append(self.net.weight.grad.double().cpu().clone())


def run(device: torch.device, alpha: float = 0.3, **options: Any) -> tuple[Recording, FANoise, Trainer]:
    module, noise = Recording(), FANoise(alpha=alpha, seed=0)
    accelerator = "gpu" if device.type == "cuda" else device.type
    return module, noise, fit(module, [noise], accelerator=accelerator, devices=1, **options)


def mixed(device: torch.device, precision: Any) -> MixedPrecision:
    # given to the Trainer, "16-mixed" would become "bf16-mixed" on the CPU
    scaler = torch.amp.GradScaler(device.type, init_scale=SCALE) if precision == "16-mixed" else None
    return MixedPrecision(precision, device.type, scaler)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_gives_the_gradients_of_float32(precision, device):
    exact, noise, _ = run(device, alpha=0.0)
    rounded, _, trainer = run(device, alpha=0.0, plugins=[mixed(device, precision)])
    first = rounded.gradients[0]
    cosine = F.cosine_similarity(exact.gradients[0].flatten(), first.flatten(), dim=0)
    assert cosine > 0.995
    assert first.norm().item() == pytest.approx(exact.gradients[0].norm().item(), rel=0.05)
    assert noise._source.draws == 0
    assert trainer.global_step == 6


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_noise_under_mixed_precision_trains_and_skips_nothing(precision, device):
    module, noise, trainer = run(device, plugins=[mixed(device, precision)])
    assert noise._source.draws == trainer.global_step == 6
    assert int(noise._source.skipped) == 0
    assert all(torch.tensor(module.losses).isfinite())
    scale = trainer.precision_plugin.scaler
    assert scale is None or scale.get_scale() == SCALE  # no step overflowed


def test_the_noise_of_a_seed_is_the_same_again(device):
    (one, *_), (other, *_) = run(device), run(device)
    assert one.losses == pytest.approx(other.losses, rel=1e-6)
    (clean, *_) = run(device, alpha=0.0)
    assert one.losses != pytest.approx(clean.losses, rel=1e-3)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_chunks_replay_the_dropout_of_the_device(chunk, device):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, DIM)).to(device)
    sides = [x.to(device).split(chunk) for x in Pairs(8).tensors]
    parameters = list(encoder.parameters())

    def gradients(embed: Any) -> list[Tensor]:
        torch.manual_seed(1)
        query, target = embed()
        loss = InfoNCE(0.5)(F.normalize(query, dim=1), F.normalize(target, dim=1))
        return list(torch.autograd.grad(loss, parameters))

    # the oracle draws the same masks, chunk by chunk, and keeps all activations
    expected = gradients(lambda: [torch.cat([encoder(x) for x in chunks]) for chunks in sides])
    actual = gradients(lambda: embed_in_chunks(encoder, sides, parameters))
    for one, other in zip(expected, actual):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
    encoder.eval()
    without = gradients(lambda: embed_in_chunks(encoder, sides, parameters))
    assert any((one - other).norm() > 1e-3 for one, other in zip(expected, without))


def test_a_compiled_encoder_and_loss_train_as_the_plain_ones(device):
    backend = "inductor" if device.type == "cuda" else "aot_eager"  # no C++ compiler is needed for that

    class Compiled(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.run = torch.compile(self.net, backend=backend)
            self.criterion.compile(backend=backend)

        def embed(self, x: Tensor) -> Tensor:
            return F.normalize(self.run(x), dim=1)

    losses = []
    for module in (PlainModule(), Compiled()):
        noise = FANoise(alpha=0.3, seed=0)
        accelerator = "gpu" if device.type == "cuda" else device.type
        fit(module, [noise], accelerator=accelerator, devices=1)
        assert noise._source.draws == 6
        losses.append(module.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
