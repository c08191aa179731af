"""Losses over all pairs of queries and candidates, without ever holding all their logits.

1. The queries are cut into blocks of rows. The loss of a row depends on its own logits alone, so the loss is
   the sum of the losses of the blocks, exactly.
2. The gradient of a block is taken while its logits are at hand, and added up: there is never more than one
   block of logits, and none is computed twice.
3. The backward pass has only to multiply these gradients by that of the sum.

The idea of taking the gradient in the forward pass is that of Liger's fused linear cross entropy [0].

References:
    [0] Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024, arXiv 2410.10989.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["sum_of_blocks"]

MAX_LOGITS = 2**21  # held at once: 8 MB of float32 and a few copies, about what stays in a cache
MIN_ROWS = 192  # with fewer, adding up the gradients of all candidates costs more than the logits

BlockLoss = Callable[..., Tensor]
"""``(rows, query[rows], candidates, *parameters) -> ()``: the summed loss of some rows, ``rows`` a slice."""


def sum_of_blocks(
    block_loss: BlockLoss, query: Tensor, candidates: Tensor, *parameters: Tensor | float
) -> Tensor:
    """The summed loss of all rows: at once where the logits are few, else block by block.

    The loss and its gradients are the same to rounding.

    Args:
        block_loss: the summed loss of some rows; all that needs a gradient comes in as an argument.
        query: (B, D), cut into blocks.
        candidates: (N, D), whole in each block.
        parameters: scale and the like, whole in each block.

    Returns:
        0-d.

    Raises:
        RuntimeError: in a backward pass with ``create_graph=True``, where the loss was computed by blocks.

    Example:
        >>> def squares(rows, query, candidates):
        ...     return (query @ candidates.T).square().sum()
        >>> sum_of_blocks(squares, torch.ones(3, 2), torch.ones(5, 2))
        tensor(60.)
    """
    rows = max(MIN_ROWS, MAX_LOGITS // max(1, len(candidates)))
    if len(query) <= rows:
        return block_loss(slice(None), query, candidates, *parameters)
    return _in_blocks(block_loss, rows, query, candidates, *parameters)


@torch.compiler.disable
def _in_blocks(block_loss: BlockLoss, rows: int, query: Tensor, *shared: Tensor | float) -> Tensor:
    if torch.is_grad_enabled():
        total: Tensor = _SumOfBlocks.apply(block_loss, rows, query, *shared)
        return total
    return sum(block_loss(at, query[at], *shared) for at in _blocks(query, rows))  # type: ignore[return-value]


class _SumOfBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block_loss: BlockLoss, rows: int, query: Tensor, *shared: Tensor | float) -> Tensor:
        needed = ctx.needs_input_grad[2:]
        leaves = [_leaf(x, need) for x, need in zip(shared, needed[1:])]
        query_grad = torch.empty_like(query) if needed[0] else None
        total = query.new_zeros(())
        for at in _blocks(query, rows):
            block = _leaf(query[at], needed[0])
            with torch.enable_grad():
                loss = block_loss(at, block, *leaves)
            if any(needed):
                loss.backward()
            if query_grad is not None:
                query_grad[at] = block.grad
            total += loss.detach()
        ctx.save_for_backward(query_grad, *(getattr(leaf, "grad", None) for leaf in leaves))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # with create_graph=True: what was saved has no graph, it would be zero
            raise RuntimeError(
                "the gradient of a loss that was computed block by block cannot be differentiated again: "
                f"leave `create_graph=True` out, or use a batch of at most {MAX_LOGITS} logits"
            )
        return None, None, *(None if saved is None else grad * saved for saved in ctx.saved_tensors)


def _leaf(x: Any, need: bool) -> Any:
    return x.detach().requires_grad_(need) if isinstance(x, Tensor) else x


def _blocks(query: Tensor, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, len(query), rows)]
