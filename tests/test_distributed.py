from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from processes import run_on_ranks

from fanoise_lightning import distributed
from fanoise_lightning.distributed import all_reduce_sum, check_equal, exchange, gather, gather_with_grad


def features(rank: int) -> torch.Tensor:
    return torch.randn(3, 2, generator=torch.Generator().manual_seed(rank))


def test_without_a_process_group_everything_is_the_identity():
    x = features(0).requires_grad_()
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert gather_with_grad(x) is x
    assert torch.equal(gather(x), x)
    assert not gather(x).requires_grad
    assert torch.equal(all_reduce_sum(x), x)
    assert exchange((3, 4)) == [(3, 4)]
    check_equal(3, "The batch size")


@pytest.mark.parametrize("world_size", [2, 3])
def test_gathered_rows_are_those_of_all_ranks_in_order(world_size):
    expected = torch.cat([features(rank) for rank in range(world_size)])
    for rows, no_grad, ids in run_on_ranks(
        lambda rank: (
            gather_with_grad(features(rank)),
            gather(features(rank).requires_grad_()),
            gather(torch.tensor([rank, -1])),
        ),
        world_size,
    ):
        assert torch.equal(rows, expected)
        assert torch.equal(no_grad, expected)
        assert not no_grad.requires_grad
        assert ids.tolist() == [value for rank in range(world_size) for value in (rank, -1)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_gradient_is_that_of_the_sum_of_all_losses(world_size):
    weights = torch.randn(world_size, 3 * world_size, 2, generator=torch.Generator().manual_seed(9))

    def gradient(rank):
        x = features(rank).requires_grad_()
        (gather_with_grad(x).square() * weights[rank]).sum().backward()
        return x.grad

    everyone = torch.cat([features(rank) for rank in range(world_size)]).requires_grad_()
    sum((everyone.square() * weight).sum() for weight in weights).backward()
    error = torch.cat(run_on_ranks(gradient, world_size)) - everyone.grad
    assert error.norm() <= 1e-6 * everyone.grad.norm()


def test_rows_that_are_not_contiguous_and_gradients_that_are_expanded_are_gathered():
    def run(rank):
        x = features(rank).T.requires_grad_()  # (2, 3)
        rows = gather_with_grad(x)
        rows.sum().backward()  # an expanded gradient
        return rows.detach(), x.grad

    for rows, grad in run_on_ranks(run, 2):
        assert torch.equal(rows, torch.cat([features(0).T, features(1).T]))
        assert torch.equal(grad, torch.full((2, 3), 2.0))


def test_a_sum_over_ranks_leaves_its_argument_as_it_is():
    def run(rank):
        x = features(rank)
        return x, all_reduce_sum(x)

    for rank, (x, total) in enumerate(run_on_ranks(run, 2)):
        assert torch.equal(x, features(rank))
        assert torch.allclose(total, features(0) + features(1))


def test_unequal_values_are_the_same_error_on_every_rank():
    def message(rank):
        check_equal((4, 7), "The shape")
        with pytest.raises(ValueError, match="must be the same") as error:
            check_equal(4 - rank, "The batch size")
        return str(error.value)

    expected = "The batch size must be the same on every rank, got 4 on rank 0, 3 on rank 1, 2 on rank 2"
    assert run_on_ranks(message, 3) == [expected] * 3


def test_where_the_default_group_has_no_cpu_numbers_go_through_a_side_group_of_its_own(monkeypatch, tmp_path):
    """As with NCCL alone; and each default group of a process gets a new side group."""
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cuda:nccl")

    def run(rank):
        made = []
        new_group = dist.new_group
        monkeypatch.setattr(dist, "new_group", lambda **kwargs: made.append(kwargs) or new_group(**kwargs))
        first = [exchange((rank, 5)), exchange((rank, 6))]
        dist.destroy_process_group()
        store = f"file://{tmp_path / 'second'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
        return [*first, exchange((rank, 7))], made, len(distributed._CPU_GROUPS)

    for values, made, kept in run_on_ranks(run, 2):
        assert values == [[(0, n), (1, n)] for n in (5, 6, 7)]
        assert made == [{"backend": "gloo"}] * 2
        assert kept == 1  # that of the ended group is not kept


# The helper of these tests: what hangs or fails on a rank must neither hang the suite nor pass


def test_ranks_that_hang_are_ended():
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] of 2 did not end within 1 s"):
        run_on_ranks(lambda rank: time.sleep(60) if rank else None, 2, timeout=1)


def test_a_rank_that_fails_is_shown_though_the_others_wait_for_it():
    with pytest.raises(RuntimeError, match=r"1 / 0(.|\n)*ZeroDivisionError"):
        run_on_ranks(lambda rank: 1 / 0 if rank else dist.barrier(), 2)
