"""A tensor that goes into the loss several times in a batch has the same noise each time."""

from __future__ import annotations

import pytest
import torch
from plain_module import Pairs, PlainModule, Recorder, fit
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from fanoise_lightning.callbacks import FANoise


class Keeps(PlainModule):
    """Keeps the noise of each batch: what the loss saw as (query, target) in each call, less the features."""

    def __init__(self, calls, loss=None) -> None:
        super().__init__(Recorder() if loss is None else loss)
        self.of = calls
        self.noise: list[list[tuple[Tensor, Tensor]]] = []

    def call(self, query, target):
        return self.criterion(query, target)

    def compute_loss(self, batch):
        features = {"q": self.embed(batch[0]), "t": self.embed(batch[1])}
        features["u"] = self.embed(batch[0] + batch[1])
        loss = sum(self.call(features[a], features[b]) for a, b in self.of)
        if isinstance(self.criterion, Recorder):
            seen = self.criterion.calls[-len(self.of) :]
            names = zip(seen, self.of)
            self.noise.append([(x - features[a], y - features[b]) for (x, y), (a, b) in names])
        return loss


@pytest.mark.parametrize(
    "options",
    [{}, {"every_n_steps": 2}, {"momentum": 0.9}, {"scope": "global"}, {"relative": True}],
    ids=str,
)
def test_a_symmetrised_loss_sees_one_noise_for_each_side(options):
    module = Keeps(["qt", "tq"])
    callback = FANoise(1.0, seed=0, **options)
    fit(module, [callback], max_steps=4)
    for (query, target), (again_target, again_query) in module.noise:
        torch.testing.assert_close(again_query, query, rtol=0, atol=1e-6)
        torch.testing.assert_close(again_target, target, rtol=0, atol=1e-6)
        assert not torch.allclose(query, target, atol=1e-2)
    first, second = module.noise[:2]
    assert not torch.allclose(first[0][0], second[0][0], atol=1e-2)  # of batches
    assert callback._source.draws == 4


def test_a_swapped_call_leaves_the_noise_of_the_first_call_as_it_is():
    noises = []
    for calls in (["qt"], ["qt", "tq"], ["qt", "qt"], ["qt", "qu"]):
        module = Keeps(calls)
        fit(module, [FANoise(1.0, seed=0)], max_steps=1)
        noises.append(module.noise[0])
    for other in noises[1:]:
        assert torch.equal(other[0][0], noises[0][0][0])
        assert torch.equal(other[0][1], noises[0][0][1])


def test_only_the_new_side_of_a_call_is_drawn():
    module = Keeps(["qt", "qu", "ut"])
    fit(module, [FANoise(1.0, seed=0)], max_steps=1)
    (q, t), (q2, u), (u2, t2) = module.noise[0]
    for again, first in ((q2, q), (u2, u), (t2, t)):
        torch.testing.assert_close(again, first, rtol=0, atol=1e-6)
    assert not torch.allclose(u, t, atol=1e-2)


def test_two_arguments_of_one_call_have_noise_of_their_own():
    module = Keeps(["qq", "qq"])
    fit(module, [FANoise(1.0, seed=0)], max_steps=1)
    (one, other), (one2, other2) = module.noise[0]
    assert not torch.allclose(one, other, atol=1e-2)
    torch.testing.assert_close(one2, one, rtol=0, atol=1e-6)
    torch.testing.assert_close(other2, other, rtol=0, atol=1e-6)


def test_one_side_alone_gets_noise_wherever_it_is_the_query():
    module = Keeps(["qt", "tq", "qu"])
    fit(module, [FANoise(1.0, seed=0, sides=["query"])], max_steps=1)
    (q, none), (t, none2), (q2, none3) = module.noise[0]
    assert not any(x.any() for x in (none, none2, none3))
    torch.testing.assert_close(q2, q, rtol=0, atol=1e-6)
    assert not torch.allclose(q, t, atol=1e-2)


def test_the_amount_is_that_of_the_level():
    module = Keeps(["qt", "tq"])
    fit(module, [FANoise(0.5, "uniform", energy="constant", seed=0)], max_steps=12)
    rows = torch.cat([x for batch in module.noise for call in batch for x in call]).detach()
    assert rows.square().sum(1).mean().sqrt() == pytest.approx(0.5, rel=0.1)


class Contrast(torch.nn.Module):
    def forward(self, query, target):
        return F.cross_entropy(query @ target.T * 5, torch.arange(len(query)))


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_gradients_are_those_of_a_loss_of_features_with_that_noise(reentrant):
    """Brute force: noise as a constant on each tensor, once."""

    class Whole(Keeps):
        def call(self, query, target):
            return (
                checkpoint(self.criterion, query, target, use_reentrant=reentrant)
                if reentrant is not None
                else self.criterion(query, target)
            )

    module = Whole(["qt", "tq"], Contrast())
    seen: list[Tensor] = []
    module.criterion.forward = lambda q, t, own=module.criterion.forward: seen.extend((q, t)) or own(q, t)
    clean = PlainModule()
    batch = next(iter(DataLoader(Pairs(), batch_size=8)))
    fit(module, [FANoise(1.0, seed=0)], max_steps=1)
    query, target = clean.embed(batch[0]), clean.embed(batch[1])
    noisy = [x + (y - x).detach() for x, y in zip((query, target), seen)]
    (Contrast()(noisy[0], noisy[1]) + Contrast()(noisy[1], noisy[0])).backward()
    torch.testing.assert_close(module.net.weight.grad, clean.net.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("calls", [["qt", "tq"], ["qt", "qt"], ["qt", "tq", "qu"]], ids=str)
def test_evaluations_of_a_closure_keep_the_noise_of_every_call(calls):
    class Closure(Keeps):
        def configure_optimizers(self):
            return torch.optim.LBFGS(
                self.parameters(), lr=0.05, max_iter=3, tolerance_grad=0, tolerance_change=0
            )

    module = Closure(calls)
    fit(module, [FANoise(1.0, seed=0)], max_steps=1)
    assert len(module.noise) >= 3
    for evaluation in module.noise[1:]:
        for call, first in zip(evaluation, module.noise[0]):
            torch.testing.assert_close(call[0], first[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(call[1], first[1], rtol=0, atol=1e-5)


def test_the_encoder_and_a_symmetrised_loss_in_one_checkpoint():
    class Whole(Keeps):
        def compute_loss(self, batch):
            def run(a, b):
                q, t = self.embed(a), self.embed(b)
                return self.criterion(q, t) + 0.3 * self.criterion(t, q)

            return checkpoint(run, *batch, use_reentrant=False) if self.of else run(*batch)

    modules = [Whole(of, Contrast()) for of in ([], ["checkpointed"])]
    for module in modules:
        fit(module, [FANoise(1.0, seed=0)], max_steps=2)
    torch.testing.assert_close(modules[1].net.weight, modules[0].net.weight, rtol=1e-5, atol=1e-6)


def test_the_noise_of_a_tensor_is_that_of_its_own_matrix():
    """Rank-one features get rank-one noise in either position."""
    direction = F.normalize(torch.randn(8), dim=0)

    class Line(Keeps):
        def embed(self, x):
            return super().embed(x).norm(dim=1, keepdim=True) * x[:, :1] * direction

    module = Line(["qt", "tq"])
    fit(module, [FANoise(1.0, "linear", seed=0)], max_steps=1)
    for call in module.noise[0]:
        for noise in call:
            assert (noise - (noise @ direction).outer(direction)).norm() < 1e-3 * noise.norm()
