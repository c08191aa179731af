"""Several instances in one trainer, several calls in one step."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from plain_module import PlainModule, Recorder, fit
from torch.nn import functional as F

from fanoise_lightning.callbacks import FANoise


class Still(PlainModule):
    """Two losses on the same features, which training does not change."""

    def __init__(self) -> None:
        super().__init__(Recorder())
        self.second = Recorder()
        self.clean: list[torch.Tensor] = []

    def compute_loss(self, batch):
        query, target = self.embed(batch[0]), self.embed(batch[1])
        self.clean.append(query.detach())
        return self.criterion(query, target) + self.second(query, target)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def noise(self, loss: str) -> torch.Tensor:
        return torch.cat([call[0] for call in getattr(self, loss).calls]) - torch.cat(self.clean)


def test_two_instances_draw_independent_noise_and_log_apart(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # as seed_everything does
    module = Still()
    callbacks = [FANoise(alpha=0.5, target="criterion"), FANoise(alpha=2.0, target="second")]
    trainer = fit(module, callbacks, log_every_n_steps=1)
    noise = torch.stack([module.noise(loss).flatten() for loss in ("criterion", "second")])
    assert abs(torch.corrcoef(noise)[0, 1]) < 4 / noise.shape[1] ** 0.5  # four standard errors
    metrics = trainer.callback_metrics
    ratio = metrics["fanoise-1/noise_to_signal"] / metrics["fanoise/noise_to_signal"]
    assert ratio.item() == pytest.approx(4, rel=0.3)


def test_two_instances_on_one_loss_add_up():
    def energy(*alphas: float) -> float:
        module = Still()
        callbacks = [FANoise(alpha, scaling="uniform", target="criterion", seed=0) for alpha in alphas]
        fit(module, callbacks)
        return module.noise("criterion").square().mean().item()

    assert energy(1.0, 1.00001) == pytest.approx(2 * energy(1.0), rel=0.3)  # equal draws: four times


def test_equal_instances_keep_their_states_apart(tmp_path):
    def callbacks(*more):
        return [FANoise(momentum=0.5), FANoise(momentum=0.5), *more]

    first = callbacks(ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1))
    fit(PlainModule(), first, max_steps=2)
    second = callbacks()
    fit(PlainModule(), second, max_steps=3, ckpt_path=str(tmp_path / "last.ckpt"))
    assert [c._resolved_seed for c in second] == [c._resolved_seed for c in first[:2]]


def test_a_module_of_several_calls_a_step_draws_for_each():
    class Twice(PlainModule):
        def __init__(self) -> None:
            super().__init__(Recorder())

        def compute_loss(self, batch):
            query, target = self.embed(batch[0]), self.embed(batch[1])
            return self.criterion(query, target) + self.criterion(query.clone(), target)

    module = Twice()
    fit(module, [FANoise(alpha=1.0)], max_steps=1)
    assert not torch.allclose(module.criterion.calls[0][0], module.criterion.calls[1][0], atol=1e-3)


def test_heads_of_other_widths_have_averages_of_their_own():
    class Matryoshka(PlainModule):
        def compute_loss(self, batch):
            query, target = self.embed(batch[0]), self.embed(batch[1])
            return self.criterion(query, target) + self.criterion(query[:, :4], target[:, :4])

    callback = FANoise(alpha=0.2, momentum=0.5)
    module = Matryoshka()
    fit(module, [callback])
    assert {key[2] for key in callback._source.shapes._moments} == {4, 8}
    assert int(callback._source.skipped) == 0


def test_each_call_of_a_step_has_statistics_of_its_own():
    """Two targets in different directions: the noise of each stays in the directions of its own."""

    class Heads(PlainModule):
        def __init__(self) -> None:
            super().__init__(Recorder())

        def compute_loss(self, batch):
            query = self.embed(batch[0])
            one, two = (F.pad(query[:, :4], pad) for pad in ((0, 4), (4, 0)))
            return self.criterion(query, one) + self.criterion(query.clone(), two)

    for options in ({"every_n_steps": 3}, {"momentum": 0.9}):
        module = Heads()
        fit(module, [FANoise(alpha=1.0, **options)])
        for call, (_, target) in enumerate(module.criterion.calls):
            foreign = target[:, 4:] if call % 2 == 0 else target[:, :4]
            assert foreign.abs().max() < 1e-3, (options, call)


def test_the_same_tensors_get_the_same_noise():
    class Logged(PlainModule):
        def __init__(self) -> None:
            super().__init__(Recorder())

        def compute_loss(self, batch):
            query, target = self.embed(batch[0]), self.embed(batch[1])
            return self.criterion(query, target) + self.criterion(query, target)

    module, callback = Logged(), FANoise(alpha=1.0)
    fit(module, [callback], max_steps=2)
    assert torch.equal(module.criterion.calls[0][0], module.criterion.calls[1][0])
    assert not torch.allclose(module.criterion.calls[0][0], module.criterion.calls[2][0], atol=1e-3)
    assert callback._source.draws == 2
