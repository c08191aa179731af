"""Losses over all pairs of queries and candidates, without ever holding all their logits.

1. The queries are split into blocks of rows. The loss of a row depends only on its own logits, so the loss is
   exactly the sum of the losses of the blocks.
2. The gradient of a block is computed while its logits are in memory, and accumulated: only one block of
   logits exists at a time, and none is computed twice.
3. The backward pass only multiplies these gradients by that of the sum.

Computing the gradient in the forward pass is the idea of Liger's fused linear cross entropy [0].

References:
    [0] Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024, arXiv 2410.10989.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["sum_of_blocks"]

MAX_LOGITS = 2**21  # held at once: 8 MB of float32 and a few copies, about what fits in a cache
MIN_ROWS = 192  # with fewer, adding up the gradients of all candidates costs more than the logits

BlockLoss = Callable[..., Tensor]
"""``(rows, query[rows], candidates, *parameters) -> ()``: the summed loss of some rows, ``rows`` a slice."""


def sum_of_blocks(
    block_loss: BlockLoss, query: Tensor, candidates: Tensor, *parameters: Tensor | float
) -> Tensor:
    """The summed loss of all rows: at once if the logits are few, otherwise block by block.

    The loss and its gradients are the same up to rounding.

    Args:
        block_loss: the summed loss of some rows; whatever needs a gradient must be an argument.
        query: (B, D), split into blocks.
        candidates: (N, D), passed whole to each block.
        parameters: scale and the like, passed whole to each block.

    Returns:
        0-d.

    Raises:
        RuntimeError: in a backward pass with ``create_graph=True``, if the loss was computed by blocks.

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
        if (
            torch.is_grad_enabled()
        ):  # with create_graph=True: what was saved has no graph, and would give zero
            raise RuntimeError(
                "the gradient of a loss computed block by block cannot be differentiated again: "
                f"leave `create_graph=True` out, or use a batch of at most {MAX_LOGITS} logits"
            )
        return None, None, *(None if saved is None else grad * saved for saved in ctx.saved_tensors)


def _leaf(x: Any, need: bool) -> Any:
    return x.detach().requires_grad_(need) if isinstance(x, Tensor) else x


def _blocks(query: Tensor, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, len(query), rows)]
