"""Noise levels that change over the training."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback
from plain_module import Pairs, PlainModule
from test_fanoise_sites import fit, quiet
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


@pytest.mark.parametrize("accumulate", [1, 2])
def test_noise_begins_with_the_second_pass_and_grows_with_the_share_of_repeats(accumulate):
    amounts, per_pass = Amounts(), 6
    noise = FANoise(RepeatAlpha(0.8), "uniform", energy="constant", relative=True, seed=0)
    options = {"log_every_n_steps": 1, "accumulate_grad_batches": accumulate}
    fit(PlainModule(), noise, amounts, steps=4 * per_pass // accumulate, **options)
    assert amounts.ratios[:per_pass] == [0] * per_pass
    assert len(amounts.ratios) == 4 * per_pass
    for batch, ratio in enumerate(amounts.ratios[per_pass:], per_pass):
        learned = batch // accumulate * accumulate  # batches that ended up in the weights
        assert ratio == pytest.approx(0.8 * (learned - per_pass) / learned, rel=0.35), batch


class Endless(IterableDataset):
    def __iter__(self):
        return iter(Pairs())


def test_repeats_of_a_pass_without_a_length_are_an_error():
    trainer = quiet(FANoise(RepeatAlpha(0.8)), max_steps=2)
    with pytest.raises(ValueError, match=r"RepeatAlpha\(peak, steps_per_pass=...\)"):
        trainer.fit(PlainModule(), DataLoader(Endless(), batch_size=8))
    noise = FANoise(RepeatAlpha(0.8, steps_per_pass=1))
    quiet(noise, max_steps=2).fit(PlainModule(), DataLoader(Endless(), batch_size=8))
    assert noise._source.draws == 2


def test_a_share_of_repeats_is_that_of_counted_samples():
    alpha = RepeatAlpha(1.0, steps_per_pass=7)
    for step in range(1, 40):
        seen = [number % 7 for number in range(step)]
        assert alpha(step) == pytest.approx(1 - len(set(seen)) / len(seen))


@pytest.mark.parametrize("arguments", [(-1,), (float("inf"),), (0.3, 0), (0.3, float("nan"))])
def test_a_repeat_schedule_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=r"must be (finite|positive)"):
        RepeatAlpha(*arguments)
    with pytest.raises(ValueError, match="outside of training"):
        RepeatAlpha(0.3)(5)
