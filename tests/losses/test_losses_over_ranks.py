"""The losses over ranks: the mean over ranks, of losses and gradients, is that of one joined batch."""

from __future__ import annotations

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from processes import run_on_ranks
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fanoise_lightning import InfoNCE, MatryoshkaLoss
from fanoise_lightning.losses import SigmoidLoss

LOSSES = {
    "InfoNCE": lambda: InfoNCE(0.1, learnable_temperature=True),
    "symmetric": lambda: InfoNCE(0.1, symmetric=True, learnable_temperature=True),
    "SigmoidLoss": SigmoidLoss,
    "MatryoshkaLoss": lambda: MatryoshkaLoss(SigmoidLoss(), [6, 3]),
}
HARD = ([0, 0, 0], [2, 2, 2], [3, 0, 1])  # how many hard negatives each rank has
IDS = (None, [0, 1, 1, 2, 0, 0, 3, -1, -1, 1, 4, 5])


def unit(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def sides(rank: int, hard: list[int]) -> list[torch.Tensor]:
    """Queries, targets and, if there are any, hard negatives of a rank: four pairs."""
    parts = [unit(4, 10 + rank), unit(4, 20 + rank), unit(hard[rank], 30 + rank)]
    return [x.requires_grad_() for x in parts if len(x)]


def joined_sides(world_size: int, hard: list[int]) -> list[torch.Tensor]:
    parts = [[unit(4, k + rank) for rank in range(world_size)] for k in (10, 20)]
    parts.append([unit(hard[rank], 30 + rank) for rank in range(world_size)])
    return [x.requires_grad_() for x in map(torch.cat, parts) if len(x)]


def assert_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert (ours - expected).norm() <= 1e-6 * max(1.0 if expected.ndim == 0 else 0.0, expected.norm())


def outcome(name: str, inputs: list[torch.Tensor], ids: list[int] | None) -> tuple:
    """A loss, and its gradients with respect to the features and to its parameters."""
    loss = LOSSES[name]()
    value = loss(*inputs, target_ids=None if ids is None else torch.tensor(ids))
    features = torch.autograd.grad(value, inputs, retain_graph=True)
    return value.detach(), features, torch.autograd.grad(value, list(loss.parameters()))


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("hard", HARD)
def test_ranks_are_one_joined_batch(world_size, hard):
    cases = [(name, ids) for name in LOSSES for ids in IDS]  # in one start of the processes

    def run(rank):
        own = slice(4 * rank, 4 * rank + 4)
        return [outcome(name, sides(rank, hard), ids and ids[own]) for name, ids in cases]

    for (name, ids), ranks in zip(cases, zip(*run_on_ranks(run, world_size))):
        inputs = joined_sides(world_size, hard)
        expected, feature_grads, parameter_grads = outcome(name, inputs, ids and ids[: 4 * world_size])
        values, features, parameters = zip(*ranks)
        assert_close(sum(values) / world_size, expected)
        for k, grad in enumerate(feature_grads):  # each rank has the gradient of the sum of all losses
            assert_close(torch.cat([own[k] for own in features if len(own) > k]) / world_size, grad)
        for k, grad in enumerate(parameter_grads):
            assert_close(sum(own[k] for own in parameters) / world_size, grad)


class Model(nn.Module):
    """An encoder and a loss, both learned."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.loss = nn.Linear(8, 6), loss

    def forward(self, query, target, ids):
        query, target = (F.normalize(self.encoder(x), dim=1) for x in (query, target))
        return self.loss(query, target, target_ids=ids)


@pytest.mark.parametrize("name", LOSSES)
def test_ddp_gets_the_gradients_of_one_process(name):
    ids = torch.tensor(IDS[1][:8])

    def run(rank):
        model = Model(LOSSES[name]())
        query, target = (x.detach() for x in sides(rank, HARD[0]))
        parallel = DistributedDataParallel(model)  # must live until the backward pass
        parallel(query, target, ids[4 * rank : 4 * rank + 4]).backward()
        return [p.grad for p in model.parameters()]

    model = Model(LOSSES[name]())
    model(*(x.detach() for x in joined_sides(2, HARD[0])), ids).backward()
    for grads in run_on_ranks(run, 2):
        for ours, parameter in zip(grads, model.parameters(), strict=True):
            assert_close(ours, parameter.grad)


@pytest.mark.parametrize("ours", ["InfoNCE", "SigmoidLoss"])
def test_they_are_the_losses_of_open_clip_over_ranks(ours):
    def run(rank):
        query, target = sides(rank, HARD[0])
        if ours == "InfoNCE":
            loss = InfoNCE(0.1, symmetric=True)(query, target)
            stock = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=2)
            expected = stock(query, target, 10.0)
        else:
            loss = SigmoidLoss()(query, target)
            stock = SigLipLoss(rank=rank, world_size=2, dist_impl="gather")
            expected = stock(query, target, 10.0, -10.0)
        grads = torch.autograd.grad(loss, [query, target])
        return loss, expected, grads, torch.autograd.grad(expected, [query, target])

    for loss, expected, grads, expected_grads in run_on_ranks(run, 2):
        assert_close(loss.detach(), expected.detach())
        for grad, expected_grad in zip(grads, expected_grads):
            assert_close(grad, expected_grad)


@pytest.mark.parametrize("name", ["InfoNCE", "SigmoidLoss"])
def test_a_rank_may_have_neither_hard_negatives_nor_target_ids(name):
    ids = torch.tensor([0, 0, 1, -1])

    def run(rank):
        inputs = sides(rank, [2, 0])
        loss = LOSSES[name]()(*inputs, **({"target_ids": ids} if rank == 0 else {}))
        loss.backward()
        return loss.detach(), inputs[1].grad

    inputs = joined_sides(2, [2, 0])
    expected = LOSSES[name]()(*inputs, torch.cat([ids, torch.full((4,), -1)]))
    expected.backward()
    losses, grads = zip(*run_on_ranks(run, 2))
    assert_close(sum(losses) / 2, expected)
    assert_close(torch.cat(grads) / 2, inputs[1].grad)


@pytest.mark.parametrize("loss", [InfoNCE(), SigmoidLoss()])
def test_unequal_batches_are_an_error_on_every_rank_and_no_hang(loss):
    def run(rank):
        with pytest.raises(ValueError, match=type(loss).__name__) as error:
            loss(unit(4 - rank, 0), unit(4 - rank, 1))
        return str(error.value)

    for message in run_on_ranks(run, 2, timeout=20):
        assert message.endswith("must be the same on every rank, got 4 on rank 0, 3 on rank 1")


def test_without_gather_each_rank_is_on_its_own():
    def value(rank, gather):
        sides, ids = [unit(4 - rank, 0), unit(4 - rank, 1), unit(3 + rank, 2)], torch.arange(4 - rank) // 2
        return InfoNCE(0.1, symmetric=True, gather=gather)(*sides, target_ids=ids)

    expected = [value(rank, gather=True) for rank in range(2)]  # in one process
    assert run_on_ranks(lambda rank: value(rank, gather=False), 2) == expected


def test_one_pair_a_rank_is_enough():
    expected = InfoNCE()(torch.cat([unit(1, 0), unit(1, 1)]), torch.cat([unit(1, 2), unit(1, 3)]))
    losses = run_on_ranks(lambda rank: InfoNCE()(unit(1, rank), unit(1, 2 + rank)), 2)
    assert_close(sum(losses) / 2, expected)


def test_features_that_need_no_gradient_are_gathered_as_well():
    with torch.no_grad():
        expected = InfoNCE(symmetric=True)(*joined_sides(2, HARD[1]))

    @torch.no_grad()
    def run(rank):
        return InfoNCE(symmetric=True)(*sides(rank, HARD[1]))

    assert_close(sum(run_on_ranks(run, 2)) / 2, expected)
