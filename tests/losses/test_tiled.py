"""Losses block by block, against all logits at once."""

from __future__ import annotations

import pytest
import torch
from processes import run_on_ranks
from torch.nn import functional as F

from fanoise_lightning.losses import InfoNCE, SigmoidLoss, tiled
from fanoise_lightning.losses.tiled import sum_of_blocks

LOSSES = {
    "InfoNCE": lambda: InfoNCE(0.1, learnable_temperature=True),
    "symmetric": lambda: InfoNCE(0.1, symmetric=True, learnable_temperature=True),
    "fixed temperature": lambda: InfoNCE(0.1),
    "SigmoidLoss": SigmoidLoss,
}


@pytest.fixture
def in_blocks(monkeypatch):
    """Make blocks of three rows: of ten rows, the last block has one."""

    def switch(rows=3):
        monkeypatch.setattr(tiled, "MIN_ROWS", rows)
        monkeypatch.setattr(tiled, "MAX_LOGITS", 1)

    return switch


def unit(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def outcome(loss, seed=0, weight=1.0, **options) -> list[torch.Tensor]:
    """The loss, and the gradients of all that it depends on."""
    sides = [unit(10, 3 * seed).requires_grad_(), unit(10, 3 * seed + 1).requires_grad_()]
    if options.pop("negatives", False):
        sides.append(unit(7, 3 * seed + 2).requires_grad_())
    value = loss(*sides, **options)
    return [value.detach(), *torch.autograd.grad(weight * value, [*sides, *loss.parameters()])]


def assert_same(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(ours, expected, strict=True):
        # the gradients of scale and bias are sums with cancellation: of terms about as large as the loss
        assert (a - b).norm() <= 1e-6 * (b.norm() if b.ndim else b.abs().maximum(expected[0]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("ids", [None, [0, 1, 0, -1, 2, 1, -1, 0, 3, 4]])
def test_blocks_are_exact(name, negatives, ids, in_blocks):
    options = {"negatives": negatives, "target_ids": None if ids is None else torch.tensor(ids)}
    expected = outcome(LOSSES[name](), weight=3.0, **options)
    in_blocks()
    assert_same(outcome(LOSSES[name](), weight=3.0, **options), expected)


@pytest.mark.parametrize("name", ["symmetric", "SigmoidLoss"])
def test_blocks_are_exact_over_ranks(name, in_blocks):
    def run(rank):
        return outcome(LOSSES[name](), seed=rank, target_ids=torch.arange(10) // 2)

    expected = run_on_ranks(run, 2)
    in_blocks()
    for ours, plain in zip(run_on_ranks(run, 2), expected):
        assert_same(ours, plain)


def test_a_block_never_holds_all_logits(in_blocks):
    shapes = []

    def block_loss(rows, query, candidates):
        shapes.append((*query.shape, *candidates.shape))
        return (query @ candidates.T).exp().sum()

    in_blocks()
    sum_of_blocks(block_loss, unit(10, 0).requires_grad_(), unit(5, 1))
    assert shapes == [(3, 8, 5, 8)] * 3 + [(1, 8, 5, 8)]


def test_few_logits_are_one_block_and_many_are_several():
    sizes = []

    def block_loss(rows, query, candidates):
        sizes.append(len(query))
        return query.sum() + candidates.sum()

    candidates = torch.zeros(tiled.MAX_LOGITS // 1024, 1)
    sum_of_blocks(block_loss, torch.zeros(1024, 1), candidates)
    assert sizes == [1024]
    sum_of_blocks(block_loss, torch.zeros(1025, 1), candidates)
    assert sizes[1:] == [1024, 1]
    del sizes[:]
    sum_of_blocks(block_loss, torch.zeros(2 * tiled.MIN_ROWS, 1), torch.zeros(tiled.MAX_LOGITS, 1))
    assert sizes == [tiled.MIN_ROWS] * 2


def test_a_block_computes_no_gradient_that_nobody_asked_for(in_blocks):
    seen = []

    def block_loss(rows, query, candidates):
        value = (query @ candidates.T).square().sum()
        seen.append((query.requires_grad, candidates.requires_grad, value.requires_grad))
        return value

    in_blocks(rows=10)
    sum_of_blocks(block_loss, torch.ones(11, 2).requires_grad_(), torch.ones(5, 2))
    assert seen == [(True, False, True)] * 2
    with torch.no_grad():
        sum_of_blocks(block_loss, torch.ones(11, 2).requires_grad_(), torch.ones(5, 2))
    assert not any(graph for *_, graph in seen[2:])


def test_without_gradient_there_is_only_the_value(in_blocks):
    query, target = unit(10, 0).requires_grad_(), unit(10, 1)
    expected = InfoNCE(0.1)(query, target).item()
    in_blocks()
    with torch.no_grad():
        value = InfoNCE(0.1)(query, target)
    assert not value.requires_grad
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert not InfoNCE(0.1)(query.detach(), target).requires_grad


@pytest.mark.parametrize("needed", ["query", "target", "logit_scale"])
def test_only_what_needs_a_gradient_gets_one(needed, in_blocks):
    def gradients():
        loss = InfoNCE(0.1, learnable_temperature=True)
        inputs = {"query": unit(10, 0), "target": unit(10, 1), "logit_scale": loss.logit_scale}
        for name, x in inputs.items():
            x.requires_grad_(name == needed)
        loss(inputs["query"], inputs["target"]).backward()
        return {name: x.grad for name, x in inputs.items()}

    expected = gradients()
    in_blocks()
    ours = gradients()
    assert [name for name, grad in ours.items() if grad is not None] == [needed]
    assert_same([ours[needed]], [expected[needed]])


def test_a_second_backward_pass_adds_the_same_gradient(in_blocks):
    in_blocks()
    query = unit(10, 0).requires_grad_()
    loss = InfoNCE(0.1)(query, unit(10, 1))
    loss.backward(retain_graph=True)
    once = query.grad.clone()
    loss.backward()
    assert torch.equal(query.grad, 2 * once)


def test_a_second_derivative_is_an_error_not_a_zero(in_blocks):
    in_blocks()
    query = unit(10, 0).requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(InfoNCE(0.1)(query, unit(10, 1)), query, create_graph=True)


def test_half_precision_features_get_gradients_of_their_own_dtype(in_blocks):
    def gradient():
        query = unit(10, 0).bfloat16().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = InfoNCE(0.1)(query, unit(10, 1).bfloat16())
        loss.backward()
        return loss.detach(), query.grad

    loss, grad = gradient()
    in_blocks()
    ours, our_grad = gradient()
    assert ours.dtype == torch.float32
    assert our_grad.dtype == torch.bfloat16
    assert_same([ours], [loss])
    assert torch.allclose(our_grad, grad, rtol=0.01)  # the rounding to bfloat16


def test_compiled_code_runs_it_as_it_is(in_blocks):
    in_blocks()
    loss = InfoNCE(0.1, learnable_temperature=True)
    expected = outcome(loss)
    loss.compile(backend="aot_eager")
    assert_same(outcome(loss), expected)


def test_loss_and_gradients_of_a_large_batch_are_those_of_all_logits_at_once(monkeypatch):
    """At the sizes in use, where nothing is set by hand."""

    def run():
        torch.manual_seed(0)
        query, target = (F.normalize(torch.randn(3000, 16), dim=1).requires_grad_() for _ in range(2))
        loss = InfoNCE(0.1)(query, target)
        loss.backward()
        return [loss.detach(), query.grad, target.grad]

    assert tiled.MAX_LOGITS < 3000**2
    ours = run()
    monkeypatch.setattr(tiled, "MAX_LOGITS", 3000**2)
    assert_same(ours, run())
