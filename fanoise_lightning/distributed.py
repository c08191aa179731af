"""What the ranks of a run tell each other: sizes, features and sums, over the default process group.

Without a process group, or with a single rank, every function returns its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = [
    "all_reduce_sum",
    "check_equal",
    "exchange",
    "gather",
    "gather_with_grad",
    "raise_unless_equal",
    "rank",
    "reach_all",
    "world_size",
]

# A CPU process group for each default group without a CPU backend. Weak: a process may destroy its group and
# start another, and a destroyed group must neither be used again nor be kept alive.
_CPU_GROUPS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def world_size() -> int:
    """W, the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this rank, from 0; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def exchange(values: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The integers of every rank, exchanged between the hosts: nothing waits for the device.

    Every rank must call it, with the same number of integers.

    Args:
        values: the integers of this rank.

    Returns:
        W tuples, in the order of the ranks.
    """
    return [values] if world_size() == 1 else _exchange(values)


def check_equal(value: int | tuple[int, ...], what: str) -> None:
    """Raise the same error on every rank if a number is not equal on all of them.

    Collectives on unequal shapes hang or mix up rows. This check runs before them, and only on the hosts.

    Args:
        value: one integer, or a tuple of as many as on the other ranks.
        what: what the number is; the message starts with it.

    Raises:
        ValueError: with the value of each rank, on every rank.

    Example:
        >>> check_equal(8, "The batch size")
    """
    raise_unless_equal(exchange(value if isinstance(value, tuple) else (value,)), what)


def raise_unless_equal(values: Sequence[tuple[int, ...]], what: str) -> None:
    """The error of :func:`check_equal`, for values that have already been exchanged.

    Args:
        values: the values of each rank, from :func:`exchange`.
        what: what they are; the message starts with it.

    Raises:
        ValueError: if they are not all equal.
    """
    if len(set(values)) > 1:
        listed = ", ".join(f"{v if len(v) > 1 else v[0]} on rank {i}" for i, v in enumerate(values))
        raise ValueError(f"{what} must be the same on every rank, got {listed}")


def gather(x: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the ranks, without gradient.

    Args:
        x: (B, ...), the same shape and dtype on every rank.

    Returns:
        (W * B, ...).
    """
    return x.detach() if world_size() == 1 else _gather(x.detach())


def gather_with_grad(x: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the ranks; gradients go back to the rank of each row.

    With two ranks that hold the rows ``a`` and ``b``, and whose losses are ``L0`` and ``L1``::

                 holds   forward    gradient of its copy    backward (summed over the ranks)
        rank 0   a       [a; b]     [dL0/da; dL0/db]        dL0/da + dL1/da
        rank 1   b       [a; b]     [dL1/da; dL1/db]        dL0/db + dL1/db

    So each rank has the gradient of the *sum* of all losses. DDP then takes the mean over the ranks: if the
    loss of each rank is the mean over its own rows, parameters get exactly the gradient of the mean over all
    rows.

    Args:
        x: (B, ...), the same shape and dtype on every rank.

    Returns:
        (W * B, ...).

    Example:
        >>> gather_with_grad(torch.ones(2, 3)).shape    # one process
        torch.Size([2, 3])
    """
    return x if world_size() == 1 else _gather_with_grad(x)


def reach_all(outputs: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The outputs, with a backward pass that reaches each of these parameters, used or not.

    DDP waits for every parameter. This tells it about those that the outputs do not depend on, without a
    search (``find_unused_parameters``), and only once the gradients of all outputs are there. So on every
    rank, what the loss exchanges in its backward pass comes first, and what DDP exchanges second.

    Args:
        outputs: tensors of any shapes.
        parameters: all parameters that are trained through the outputs.
    """
    return list(_ReachAll.apply(len(outputs), *outputs, *parameters))


class _ReachAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.others = len(tensors) - count
        return tuple(output.clone() for output in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *gradients, *[None] * ctx.others)


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over all ranks, as a new tensor without gradient.

    Args:
        x: the same shape and dtype on every rank.
    """
    total = x.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(total)
    return total


# torch.compile breaks its graph at these, and only with several ranks.


@torch.compiler.disable
def _exchange(values: tuple[int, ...]) -> list[tuple[int, ...]]:
    everyone = torch.empty(world_size() * len(values), dtype=torch.int64)
    dist.all_gather_into_tensor(everyone, torch.tensor(values, dtype=torch.int64), group=_cpu_group())
    return [tuple(row) for row in everyone.view(-1, len(values)).tolist()]


@torch.compiler.disable
def _gather(x: Tensor) -> Tensor:
    everyone = x.new_empty(world_size() * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(everyone, x.contiguous())
    return everyone


@torch.compiler.disable
def _gather_with_grad(x: Tensor) -> Tensor:
    gathered: Tensor = _Gather.apply(x)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        own = grad.new_empty(len(grad) // world_size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(own, grad.contiguous())
        return own


def _cpu_group() -> Any:
    """The default group (``None``) if it can move CPU tensors, otherwise one that can, created once."""
    if "cpu:" in dist.get_backend_config():
        return None
    world = dist.group.WORLD
    if world not in _CPU_GROUPS:
        _CPU_GROUPS[world] = dist.new_group(backend="gloo")
    return _CPU_GROUPS[world]
