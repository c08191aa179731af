"""Noise levels that change over the training."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
from lightning.pytorch import Callback
from noisy_sites import fit, quiet
from plain_module import Pairs, PlainModule
from torch.utils.data import DataLoader, IterableDataset

from fanoise_lightning import LinearAlpha, RepeatAlpha
from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.callbacks.alpha import alpha_at
from fanoise_lightning.cli import FANoiseCLI


class Amounts(Callback):
    """The logged ratio of noise to features at each step."""

    def __init__(self) -> None:
        self.ratios: list[float] = []

    def on_train_batch_end(self, trainer, *args) -> None:
        self.ratios.append(float(trainer.callback_metrics["fanoise/noise_to_signal"]))


@pytest.mark.parametrize("site", [{}, {"target": "net", "where": "output"}])
def test_the_noise_follows_a_schedule_from_zero(site):
    amounts = Amounts()
    noise = FANoise(LinearAlpha(0.0, 0.4, 4), "uniform", energy="constant", relative=True, seed=0, **site)
    fit(PlainModule(), noise, amounts, steps=8, log_every_n_steps=1)
    assert amounts.ratios[0] == 0
    for step, ratio in enumerate(amounts.ratios):
        assert ratio == pytest.approx(0.1 * min(step, 4), rel=0.4), step
    assert noise._source.draws >= 8


def test_a_function_is_called_with_the_optimiser_step_and_warm_up_multiplies_it():
    amounts, steps = Amounts(), []
    noise = FANoise(
        lambda step: steps.append(step) or 0.4, "uniform", energy="constant", warmup_steps=4, seed=0
    )
    fit(PlainModule(), noise, amounts, steps=6, log_every_n_steps=1, accumulate_grad_batches=2)
    assert sorted(set(steps)) == [0, 1, 2, 3, 4, 5]
    assert amounts.ratios[0] == pytest.approx(0.1, rel=0.4)
    assert amounts.ratios[-1] == pytest.approx(0.4, rel=0.4)


@pytest.mark.parametrize("level", [-0.1, float("nan"), float("inf"), None, "loud"])
def test_a_level_that_is_none_is_named_with_its_step(level):
    with pytest.raises(ValueError, match=rf"`alpha` must be finite and at least 0, got {level!r} at step 7"):
        alpha_at(lambda step: level, 7)


@pytest.mark.parametrize("arguments", [(-1, 1, 5), (0, float("nan"), 5), (0, 1, 0)])
def test_a_schedule_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=r"must be (finite and )?at least"):
        LinearAlpha(*arguments)


def test_the_command_line_takes_schedules_functions_and_sites():
    cli = FANoiseCLI(
        [
            "--model.encoder=fanoise_lightning.OpenClipEncoder",
            "--model.encoder.model=emoji-resnet",
            "--data=fanoise_lightning.MMEBDataModule",
            "--data.root=emoji",
            "--noise.alpha=fanoise_lightning.LinearAlpha",
            "--noise.alpha.start=0",
            "--noise.alpha.end=0.5",
            "--noise.alpha.steps=10",
            "--noise.scaling=torch.log1p",
            "--noise.target=encoder.clip",
            "--noise.where=output",
        ],
        run=False,
    )
    (noise,) = [c for c in cli.trainer.callbacks if isinstance(c, FANoise)]
    assert alpha_at(noise.alpha, 5) == 0.25
    assert (noise.scaling.__name__, noise.where) == ("log1p", "output")


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"max_steps": 24}, 4),
        ({"max_epochs": 5}, 5),
        ({"max_epochs": 5, "accumulate_grad_batches": 2}, 5),
        ({"max_epochs": 5, "accumulate_grad_batches": 4}, 5),  # the last step of an epoch is of two batches
        ({"max_epochs": 9, "max_steps": 12}, 2),
        ({"max_steps": 3}, 1),
    ],
)
def test_the_level_follows_the_number_of_passes(options, passes):
    amounts = Amounts()
    noise = FANoise(RepeatAlpha(), "uniform", energy="constant", relative=True, seed=0)
    quiet(noise, amounts, log_every_n_steps=1, **options).fit(
        PlainModule(), DataLoader(Pairs(), batch_size=8)
    )
    assert fmean(amounts.ratios) == pytest.approx(0.25 * math.log(passes), rel=0.1)
    assert noise.alpha == RepeatAlpha()  # as it was given, for another fit


class Endless(IterableDataset):
    def __iter__(self):
        return iter(Pairs())


def test_a_training_without_a_known_number_of_passes_is_an_error():
    for dataset, options in ((Endless(), {"max_steps": 2}), (Pairs(), {"max_epochs": -1})):
        with pytest.raises(ValueError, match=r"RepeatAlpha\(passes=...\)"):
            quiet(FANoise(RepeatAlpha()), **options).fit(PlainModule(), DataLoader(dataset, batch_size=8))
    noise = FANoise(RepeatAlpha(passes=3))
    quiet(noise, max_steps=2).fit(PlainModule(), DataLoader(Endless(), batch_size=8))
    assert noise._source.draws == 2


@pytest.mark.parametrize("arguments", [(-1,), (float("inf"),), (0.3, 0.5), (0.3, float("nan"))])
def test_a_number_of_passes_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=r"must be finite and at least"):
        RepeatAlpha(*arguments)
    with pytest.raises(ValueError, match="outside of training"):
        RepeatAlpha(0.3)(5)
