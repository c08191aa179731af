"""Noise inside a model that is resumed, distributed, compiled or copied."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from noisy_sites import Seen, contrasts, fit, quiet, same
from plain_module import Pairs, PlainModule
from processes import run_on_ranks
from test_fanoise_ranks import TRAINING
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fanoise_lightning import LinearAlpha
from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.callbacks._shapes import ShapeMemory
from fanoise_lightning.callbacks._sites import InnerSite
from fanoise_lightning.callbacks._source import NoiseSource


class Save(Callback):
    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, *args) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.fit_loop.total_batch_idx}.ckpt")


class Loader(DataLoader):
    """Continues where it stopped."""

    place = 0

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number >= self.place % len(self):
                self.place = number + 1
                yield batch

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_sees_the_noise_of_an_unbroken_one(tmp_path, accumulate):
    def run(*callbacks: Callback, ckpt_path: Any = None) -> Any:
        module = contrasts()
        seed_everything(0 if ckpt_path is None else 1, verbose=False)
        noise = FANoise(LinearAlpha(0.0, 0.5, 4), target="encoder.head", where="output")
        trainer = quiet(noise, *callbacks, max_epochs=2, accumulate_grad_batches=accumulate)
        trainer.fit(module, Loader(Pairs(), batch_size=8), ckpt_path=ckpt_path)
        return module

    unbroken = run(Save(tmp_path))
    for number in range(12):
        assert same(run(ckpt_path=tmp_path / f"{number}.ckpt"), unbroken), number


class Net(nn.Module):
    """What DDP wraps: a module with the site inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_under_ddp_each_rank_has_its_own_noise_and_gradients_are_averaged():
    def run(rank: int) -> tuple[Tensor, Tensor, Tensor]:
        source = NoiseSource(ShapeMemory("sublinear", "paper", 0.0, 1), lambda step: 0.5)
        source.begin(SimpleNamespace(**TRAINING), (0, rank, 0))
        owner, seen = Net(), []
        InnerSite("net", owner.net, owner, "input", source, ("query", "target"), False).attach()
        owner.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        ddp = nn.parallel.DistributedDataParallel(owner)
        torch.manual_seed(0)  # the same on all ranks, as seed_everything leaves it
        ddp(torch.ones(4, 6)).square().sum().backward()
        alone = Net()
        alone(seen[0]).square().sum().backward()
        return seen[0], owner.net.weight.grad, alone.net.weight.grad

    (x0, both, one), (x1, both1, other) = run_on_ranks(run, 2)
    assert not torch.equal(x0, x1)
    torch.testing.assert_close(both, (one + other) / 2)
    torch.testing.assert_close(both, both1)


def test_a_compiled_encoder_gets_noise():
    module, seen = PlainModule(), Seen()
    module.net.compile(backend="eager")
    fit(module, FANoise(0.5, target="net", where="input"), seen, steps=1)
    clean = next(iter(DataLoader(Pairs(), batch_size=8)))[0]
    assert not torch.equal(seen.calls[0][0], clean)


def test_a_copy_of_the_module_is_clean():
    class Copies(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args) -> None:
            x = torch.ones(2, 6)
            for twin in (copy.deepcopy(pl_module.net), pickle.loads(pickle.dumps(pl_module.net))):
                assert torch.equal(twin(x), F.linear(x, twin.weight, twin.bias))

    fit(PlainModule(), FANoise(0.5, target="net", where="input"), Copies(), steps=1)
