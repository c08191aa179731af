"""Interrupted runs against unbroken ones, bit for bit."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import run_on_ranks
from torch import Tensor, nn

from fanoise_lightning import ContrastiveModule, Encoder, InfoNCE, LinearWarmup, MMEBDataModule, Sample
from fanoise_lightning.callbacks import ExactResume, FANoise
from fanoise_lightning.callbacks.exact_resume import held_gradients
from fanoise_lightning.seeds import derive_seed

ROOT = Path(__file__).parents[2]
KILL = ROOT / "benchmarks" / "kill.py"
RECIPE = ROOT / "examples" / "configs" / "emoji.yaml"


class Letters(nn.Module):
    """Collates samples without tokenizer or images: how often each letter comes, and a mean colour."""

    def __call__(self, samples: list[Sample]) -> dict[str, Tensor]:
        return {"x": torch.stack([self._features(sample) for sample in samples])}

    def _features(self, sample: Sample) -> Tensor:
        text = torch.tensor([float((sample.text or "").count(letter)) for letter in "abcdefghiklmnoprstu"])
        return torch.cat([text, torch.tensor([0.0 if sample.image is None else sample.image.width / 64])])


class Dropped(Encoder):
    embedding_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.collate = Letters()
        self.layers = nn.Sequential(nn.Linear(20, 16), nn.Dropout(0.5), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Crash(Exception):
    pass


class Draws(Callback):
    """What the global generator gives in each training batch; a checkpoint or a crash after one."""

    def __init__(
        self, crash_after: int | None = None, save: Path | None = None, save_after: int = -1
    ) -> None:
        self.numbers: dict[int, float] = {}
        self.crash_after, self.save, self.save_after = crash_after, save, save_after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        number = trainer.fit_loop.total_batch_idx
        self.numbers[number] = torch.rand(()).item()
        if number == self.save_after:
            trainer.save_checkpoint(self.save)
        if number == self.crash_after:
            raise Crash


def build() -> ContrastiveModule:
    return ContrastiveModule(
        Dropped(),
        InfoNCE(0.1, learnable_temperature=True),
        optimizer=partial(torch.optim.AdamW, lr=0.01),
        lr_scheduler=partial(LinearWarmup, warmup_steps=3),
    )


def fit(
    *callbacks: Callback,
    seed: int | None = 0,
    module: ContrastiveModule | None = None,
    ckpt_path: Path | str | None = None,
    **options,
) -> ContrastiveModule:
    """Train with the callbacks until one of them interrupts."""
    if seed is not None:
        seed_everything(seed, verbose=False)
    module = module or build()
    data = MMEBDataModule(
        "emoji",
        train_subsets=["keywords"],
        eval_subsets=["keywords"],
        num_samples=44,
        batch_size=8,
        num_workers=0,
    )
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "max_steps": 8,
            "accumulate_grad_batches": 2,  # of five batches an epoch
            "limit_val_batches": 0,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "callbacks": list(callbacks),
            **options,
        }
    )
    with suppress(Crash):
        trainer.fit(module, data, ckpt_path=ckpt_path)
    return module


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0] | states[1])


@pytest.mark.parametrize(
    "number", [1, 2, 4, 7]
)  # at a step, in an accumulation, at and after the epoch's end
def test_a_crashed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path, number):
    path = tmp_path / "saved.ckpt"
    unbroken = fit(FANoise())
    crashed = fit(FANoise(), Draws(crash_after=number, save=path, save_after=number))
    assert not same(crashed, unbroken)
    torch.manual_seed(1)
    assert same(fit(FANoise(), ckpt_path=path, seed=None), unbroken)


def test_the_checkpoint_after_a_resume_may_be_in_the_middle_of_an_accumulation(tmp_path):
    """Lightning forgets that it has saved this step, and saves again at the next batch."""
    every_step = partial(ModelCheckpoint, tmp_path, save_last=True, every_n_train_steps=1)
    options = {"enable_checkpointing": True}
    fit(every_step(), Draws(crash_after=2), **options)  # checkpoints are written after the other callbacks
    fit(every_step(), Draws(crash_after=3), ckpt_path="last", **options)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 3
    assert same(fit(every_step(), ckpt_path="last", **options), fit())


def test_every_batch_draws_its_own_numbers_and_a_resumed_one_the_same(tmp_path):
    whole, first, second = Draws(), Draws(6, tmp_path / "saved.ckpt", save_after=4), Draws()
    fit(whole)
    fit(first)
    fit(second, ckpt_path=tmp_path / "saved.ckpt")
    assert len(set(whole.numbers.values())) == len(whole.numbers)
    assert first.numbers.items() < whole.numbers.items()
    assert second.numbers == {number: x for number, x in whole.numbers.items() if number > 4}


def test_a_run_without_a_seed_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    first, second, other = Draws(save=tmp_path / "saved.ckpt", save_after=3), Draws(), Draws()
    fit(first, seed=None)
    fit(second, seed=None, ckpt_path=tmp_path / "saved.ckpt")
    fit(other, seed=None)
    assert second.numbers.items() < first.numbers.items()
    assert not set(other.numbers.values()) & set(first.numbers.values())


def test_a_callback_takes_the_seed_of_each_fit():
    resume, draws, expected = ExactResume(), Draws(), Draws()
    fit(resume, seed=0)
    fit(resume, draws, seed=1)
    fit(expected, seed=1)
    assert draws.numbers == expected.numbers


def test_ranks_draw_different_numbers(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")

    def draw(rank: int) -> float:
        strategy = SimpleNamespace(broadcast=lambda seed: seed)
        loop = SimpleNamespace(total_batch_idx=5)
        trainer = SimpleNamespace(global_rank=rank, fit_loop=loop, strategy=strategy)
        ExactResume().on_train_batch_start(trainer, None, None, 0)
        return torch.rand(()).item()

    assert draw(0) == draw(0) != draw(1)


def test_dropout_does_not_draw_the_numbers_of_the_noise():
    # numpy takes (0, 1, 5) and (0, 1, 5, 0) for one seed
    noise = {derive_seed(0, 1, 5, call, side) for call in range(3) for side in range(2)}
    assert derive_seed(0, 1, 5) not in noise


def test_gradients_of_an_accumulation_are_kept_as_their_mean_over_the_ranks():
    def gradients(rank: int) -> dict[str, Tensor]:
        module = nn.ModuleDict(
            {name: nn.Linear(2, 1, bias=False) for name in ("both", "one", "none", "frozen")}
        )
        module["frozen"].requires_grad_(False)
        module["both"].weight.grad = torch.full((1, 2), 1.0 + rank)
        if rank == 1:
            module["one"].weight.grad = torch.ones(1, 2)
        kept = held_gradients(module)
        assert torch.equal(module["both"].weight.grad, torch.full((1, 2), 1.0 + rank))
        return kept

    for kept in run_on_ranks(gradients, 2):
        assert {name: x.tolist() for name, x in kept.items()} == {
            "both.weight": [[1.5, 1.5]],
            "one.weight": [[0.5, 0.5]],
        }


def test_the_checkpoint_names_no_callback_of_the_module(tmp_path):
    path = tmp_path / "saved.ckpt"
    fit(FANoise(), Draws(crash_after=3, save=path, save_after=3))
    saved = torch.load(path, weights_only=True)
    assert saved["fanoise_lightning.ExactResume"]["run_seed"] == 0
    assert list(saved["callbacks"]) == ["FANoise-0"]


def callbacks_of(trainer: Trainer) -> list[str]:
    return [type(callback).__name__ for callback in trainer.callbacks]


def test_the_module_brings_the_callback_unless_the_trainer_has_one():
    module, ours = build(), ExactResume()
    for callbacks in ([], [ours], [type("Theirs", (ExactResume,), {})()]):
        checkpoint = ModelCheckpoint(save_last=True)
        trainer = Trainer(callbacks=[checkpoint, *callbacks], logger=False, accelerator="cpu")
        module.trainer = trainer
        added = module.configure_callbacks()
        assert sum(isinstance(c, ExactResume) for c in [*trainer.callbacks, *added]) == 1
    assert ours not in added


def test_a_trainer_that_fits_twice_has_the_callback_once_and_before_the_checkpoints(tmp_path):
    trainer = Trainer(
        callbacks=[FANoise(), ModelCheckpoint(tmp_path)],
        max_steps=0,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = MMEBDataModule("emoji", train_subsets=["keywords"], eval_subsets=["keywords"], num_workers=0)
    module = build()
    for _ in range(2):
        trainer.fit(module, data)
        assert callbacks_of(trainer) == ["FANoise", "ExactResume", "PairsPerSecond", "ModelCheckpoint"]


@pytest.mark.parametrize("callbacks", [[], [ExactResume()]], ids=["without", "with"])
def test_a_trainer_can_save_a_module_that_it_has_not_trained(tmp_path, callbacks):
    module, path = build(), tmp_path / "saved.ckpt"
    trainer = Trainer(callbacks=callbacks, logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    assert same(ContrastiveModule.load_from_checkpoint(path, encoder=Dropped(), loss=build().loss), module)
