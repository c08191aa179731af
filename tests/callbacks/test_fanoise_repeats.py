"""An evaluation that repeats an earlier one sees its noise."""

from __future__ import annotations

import pytest
import torch
from plain_module import PlainModule, Recorder, fit
from torch.utils.checkpoint import checkpoint

from fanoise_lightning.callbacks import FANoise

# Activation checkpointing: the loss runs again in the backward pass


class Checkpointed(PlainModule):
    def __init__(self, reentrant: bool | None, of: str = "loss", calls: int = 1) -> None:
        super().__init__()
        self.reentrant, self.of, self.calls = reentrant, of, calls

    def run(self, function, *args):
        return (
            function(*args)
            if self.reentrant is None
            else checkpoint(function, *args, use_reentrant=self.reentrant)
        )

    def compute_loss(self, batch):
        if self.of == "loss":
            one = lambda a, b: self.run(self.criterion, self.embed(a), self.embed(b))  # noqa: E731
        else:
            weights = torch.ones(
                (), requires_grad=True
            )  # a reentrant checkpoint wants an input with a gradient
            whole = lambda a, b, w: w * self.criterion(self.embed(a), self.embed(b))  # noqa: E731
            one = lambda a, b: self.run(whole, a, b, weights)  # noqa: E731
        # of several calls on features of one shape, in another order in the backward pass
        return sum(one(batch[0] + shift, batch[1]) for shift in range(self.calls))


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("of", ["loss", "encoder and loss"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_loss_has_the_loss_and_the_gradients_of_a_plain_one(reentrant, of, calls):
    plain, checkpointed = Checkpointed(None, of, calls), Checkpointed(reentrant, of, calls)
    callbacks = [FANoise(alpha=2.0, seed=0), FANoise(alpha=2.0, seed=0)]
    for module, callback in zip((plain, checkpointed), callbacks):
        fit(module, [callback], max_steps=2)
    assert checkpointed.losses == pytest.approx(plain.losses, rel=1e-5)
    torch.testing.assert_close(checkpointed.net.weight, plain.net.weight, rtol=1e-4, atol=1e-5)
    assert callbacks[1]._source.draws == callbacks[0]._source.draws  # counted once


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("calls", ["twice", "logged before"])
def test_a_loss_that_is_called_twice_with_the_same_features(calls, reentrant):
    class Twice(Checkpointed):
        def compute_loss(self, batch):
            query, target = self.embed(batch[0]), self.embed(batch[1])
            first = (
                self.run(self.criterion, query, target) if calls == "twice" else self.criterion(query, target)
            )
            return first * 0.3 + self.run(self.criterion, query, target)

    plain, checkpointed = Twice(None), Twice(reentrant)
    for module in (plain, checkpointed):
        fit(module, [FANoise(alpha=2.0, seed=0)], max_steps=2)
    assert checkpointed.losses == pytest.approx(plain.losses, rel=1e-5)
    torch.testing.assert_close(checkpointed.net.weight, plain.net.weight, rtol=1e-4, atol=1e-5)


def test_equal_features_that_are_computed_twice_are_an_error():
    with pytest.raises(RuntimeError, match="features like those of 2 of the 2 calls before it"):
        fit(EqualTwice(False, "encoder and loss"), [FANoise()], max_steps=1)


class EqualTwice(Checkpointed):
    def compute_loss(self, batch):
        return super().compute_loss(batch) + super().compute_loss(batch)


def test_a_broken_batch_under_two_checkpoints_passes():
    class Broken(Checkpointed):
        def embed(self, x):
            return super().embed(x) * (torch.nan if self.trainer.fit_loop.total_batch_idx == 1 else 1.0)

    callback, module = FANoise(), Broken(False, "encoder and loss", calls=2)
    with pytest.warns(UserWarning, match="left 2 training batches without noise"):
        fit(module, [callback], max_steps=2)
    assert len(module.losses) == 2


def test_a_recomputation_with_other_features_is_an_error():
    class Changing(PlainModule):
        def compute_loss(self, batch):
            def whole(a, b):  # as dropout does without its random state
                return self.criterion(self.embed(a) + torch.randn(1), self.embed(b))

            first = checkpoint(whole, *batch, use_reentrant=False, preserve_rng_state=False)
            return first + checkpoint(whole, *batch, use_reentrant=False, preserve_rng_state=False)

    with pytest.raises(
        RuntimeError, match="in a backward pass with features like those of 0 of the 2 calls before it"
    ):
        fit(Changing(), [FANoise()], max_steps=1)


@pytest.mark.parametrize("compiled", ["module", "loss"])
def test_a_compiled_checkpointed_loss_has_the_gradients_of_a_plain_one(compiled):
    plain, checkpointed = Checkpointed(None), Checkpointed(False)
    fit(plain, [FANoise(alpha=2.0, seed=0)])
    if compiled == "loss":
        checkpointed.criterion = torch.compile(checkpointed.criterion, backend="eager")
        fit(checkpointed, [FANoise(alpha=2.0, seed=0)])
    else:
        fit(torch.compile(checkpointed, backend="eager"), [FANoise(alpha=2.0, seed=0)])
    torch.testing.assert_close(checkpointed.net.weight, plain.net.weight, rtol=1e-5, atol=1e-7)


# An optimiser's closure: the same batch several times in one step


class Closure(PlainModule):
    """Keeps what the loss sees, with the clean features beside it."""

    def __init__(self, manual: bool = False, calls: int = 1) -> None:
        super().__init__(Recorder())
        self.clean: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.automatic_optimization = not manual
        self.calls = calls

    def compute_loss(self, batch):
        total = 0.0
        for _ in range(self.calls):
            query, target = self.embed(batch[0]), self.embed(batch[1])
            self.clean.append((query.detach().clone(), target.detach().clone()))
            total = total + self.criterion(query, target)
        return total

    def training_step(self, batch, batch_idx):
        if self.automatic_optimization:
            return super().training_step(batch, batch_idx)
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            loss = self.compute_loss(batch)
            self.manual_backward(loss)
            return loss

        self.compute_loss(batch)  # before the step: a draw of its own
        optimizer.step(closure=closure)
        return None

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=4, tolerance_grad=0, tolerance_change=0)

    def noise(self) -> list[torch.Tensor]:
        return [noisy[0] - clean[0] for noisy, clean in zip(self.criterion.calls, self.clean)]


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("manual", [False, True])
def test_every_evaluation_of_a_closure_sees_the_noise_of_the_first(manual, calls):
    module = Closure(manual, calls)
    fit(module, [FANoise(alpha=1.0, seed=0)], max_steps=2)
    noise, first = module.noise(), calls * manual  # calls before the step
    batches = [noise[: len(noise) // 2], noise[len(noise) // 2 :]]
    for draws in batches:
        assert len(draws) - first >= 4 * calls
        for call in range(calls):
            evaluations = draws[first + call :: calls]
            for other in evaluations[1:]:
                torch.testing.assert_close(other, evaluations[0], rtol=0, atol=1e-6)
        distinct = draws[: first + calls]
        assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(distinct) for b in distinct[:i])
    assert not torch.allclose(batches[0][first], batches[1][first], atol=1e-3)
    moved = module.clean[first + calls][0] - module.clean[first][0]
    assert moved.abs().max() > 1e-4  # the features changed, the noise did not


def test_a_closure_given_by_position_to_a_plain_optimiser_is_watched_too():
    class Evaluating(torch.optim.SGD):
        def step(self, closure, times):
            return [closure() for _ in range(times)][-1]

    class Plain(Closure):
        def training_step(self, batch, batch_idx):
            self.optimizers(use_pl_optimizer=False).step(lambda: self.compute_loss(batch), 3)

        def configure_optimizers(self):
            return Evaluating(self.parameters())

    module = Plain(manual=True)
    fit(module, [FANoise(alpha=1.0, seed=0)], max_epochs=1, limit_train_batches=1)
    first, *others = module.noise()
    assert len(others) == 2
    assert all(torch.equal(first, other) for other in others)


def test_a_closure_with_two_backward_passes_draws_for_each_loss():
    class TwoLosses(Closure):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()

            def closure():
                optimizer.zero_grad()
                losses = [self.compute_loss(part) for part in (batch, [x[:5] for x in batch])]
                for loss in losses:
                    self.manual_backward(loss)
                return sum(losses).detach()

            optimizer.step(closure=closure)

    module = TwoLosses(manual=True)
    fit(module, [FANoise(alpha=1.0, seed=0)], max_steps=1)
    noise = module.noise()
    for call in range(2):
        for other in noise[call::2]:
            torch.testing.assert_close(other, noise[call], rtol=0, atol=1e-6)
    assert not torch.allclose(noise[0][:5], noise[1], atol=1e-3)


def test_an_optimiser_without_hooks_of_torch_is_no_trouble():
    class Duck:
        """What Lightning's ``Optimizable`` asks for, and no more."""

        def __init__(self, parameters) -> None:
            inner = torch.optim.SGD(parameters, lr=0.1)
            self.param_groups, self.defaults, self.state = inner.param_groups, inner.defaults, inner.state
            self.state_dict, self.load_state_dict = inner.state_dict, inner.load_state_dict
            self.inner = inner

        def step(self, closure=None):
            return self.inner.step(closure)

        def zero_grad(self, set_to_none=True):
            self.inner.zero_grad(set_to_none)

    class Ducked(PlainModule):
        def configure_optimizers(self):
            return Duck(self.parameters())

    callback = FANoise()
    fit(Ducked(), [callback], max_steps=2)
    assert callback._source.draws == 2


def test_a_closure_with_another_batch_is_an_error():
    class Shrinking(Closure):
        def compute_loss(self, batch):
            return super().compute_loss([x[len(self.clean) :] for x in batch])

    with pytest.raises(RuntimeError, match="closure the noise of its first evaluation"):
        fit(Shrinking(), [FANoise()], max_steps=1)


def test_alternating_optimisers_draw_anew_for_each():
    class Alternating(Closure):
        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.compute_loss(batch))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.0) for _ in range(2)]

    module = Alternating(manual=True)
    fit(module, [FANoise(alpha=1.0, seed=0)], max_steps=2)
    assert not torch.allclose(*module.noise()[:2], atol=1e-3)


# Calls without gradient


def test_a_call_without_gradient_sees_clean_features():
    class Metric(PlainModule):
        def __init__(self) -> None:
            super().__init__(Recorder())
            self.clean: list[torch.Tensor] = []

        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self.compute_loss(batch)
            self.clean.append(self.embed(batch[0]).detach())
            return super().training_step(batch, batch_idx)

    module = Metric()
    fit(module, [FANoise(alpha=1.0)], max_steps=1)
    (without, _), (noisy, _) = module.criterion.calls
    assert torch.equal(without, module.clean[0])
    assert not torch.allclose(noisy, module.clean[0], atol=1e-3)
