"""GradCache: the gradients of a large batch in the memory of a small one [0].

1. Each chunk is embedded without a graph, so that its activations are freed at once.
2. The loss (and the noise before it) sees the embeddings of the whole batch. Its backward pass computes the
   gradient of each embedding.
3. In the same backward pass each chunk is embedded again, now with a graph and with the dropout of the first
   time, and the gradients of its embeddings are propagated to the parameters.

The last chunk is embedded with a graph at once, and comes first in the backward pass: that saves its second
pass, in the memory of one chunk, which is free meanwhile.

To autograd the three steps are one operation from the parameters to the embeddings. Everything around it
works as usual: automatic optimisation, precision, clipping, accumulation, parameters of the loss, and DDP,
which sees the gradient of each parameter once per step.

References:
    [0] Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021,
        arXiv 2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

__all__ = ["embed_in_chunks"]


def embed_in_chunks(
    embed: Callable[[Any], Tensor], sides: Sequence[Sequence[Any]], parameters: Sequence[nn.Parameter]
) -> list[Tensor]:
    """Embed the chunks of each side so that backward needs the activations of one chunk at a time.

    Args:
        embed: turns a chunk into embeddings (b, D). It is called twice per chunk, but for the last, and must
            do the same both times; the random numbers of the CPU and of the parameters' device are replayed.
        sides: the chunks of the queries, of the targets, ...
        parameters: all parameters that `embed` depends on and that are to get a gradient through it.

    Returns:
        For each side the concatenated embeddings of its chunks, (B, D).

    Raises:
        RuntimeError: in the backward pass, if `embed` hides parameters in reentrant checkpoints.

    Example:
        >>> encoder = torch.nn.Linear(8, 4)
        >>> query, target = torch.randn(2, 16, 8)
        >>> sides = [query.split(4), target.split(4)]
        >>> [side.shape for side in embed_in_chunks(encoder, sides, list(encoder.parameters()))]
        [torch.Size([16, 4]), torch.Size([16, 4])]
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not torch.is_grad_enabled() or not trained:
        return [torch.cat([embed(chunk) for chunk in chunks]) for chunks in sides]
    return list(_EmbedInChunks.apply(embed, sides, trained, *_inputs(trained)))


def _inputs(trained: list[nn.Parameter]) -> list[Tensor]:
    """What the operation returns gradients for: the parameters."""
    if any(isinstance(parameter, DTensor) for parameter in trained):
        # FSDP2 collects gradients in hooks of a backward pass that returns none. Autograd only visits this
        # operation if some input requires a gradient.
        return [torch.empty(0, device=trained[0].device, requires_grad=True)]
    return list(trained)


@dataclass
class _Chunk:
    """What a chunk is embedded from again: its inputs, the random state, or the graph that was kept."""

    inputs: Any
    random: tuple[Tensor, Tensor | None]
    embeddings: Tensor | None


class _EmbedInChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embed: Callable[[Any], Tensor],
        sides: Sequence[Sequence[Any]],
        trained: list[nn.Parameter],
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.embed, ctx.trained = embed, trained
        ctx.sharded = inputs[0] is not trained[0]
        ctx.device = inputs[0].device
        kind = ctx.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.sizes, ctx.chunks = [], []
        last = None if ctx.sharded else (len(sides) - 1, len(sides[-1]) - 1)
        embeddings = []
        for side, chunks in enumerate(sides):
            parts = []
            for number, chunk in enumerate(chunks):
                state, keep = _random_state(ctx.device), (side, number) == last
                with torch.set_grad_enabled(keep):
                    part = embed(chunk)
                ctx.chunks.append(_Chunk(chunk, state, part if keep else None))
                parts.append(part.detach())
            ctx.sizes.append([len(part) for part in parts])
            embeddings.append(torch.cat(parts))
        return tuple(embeddings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sums: list[Tensor | None] = [None] * len(ctx.trained)
        kind, dtype, enabled = ctx.autocast
        checked: set[frozenset[int]] = {frozenset()}
        parts = [part for gradient, sizes in zip(gradients, ctx.sizes) for part in gradient.split(sizes)]
        for chunk, part in reversed(list(zip(ctx.chunks, parts))):  # the one whose graph is kept comes first
            embeddings, chunk.embeddings = chunk.embeddings, None
            if embeddings is None:
                with (
                    torch.enable_grad(),
                    _replayed(ctx.device, chunk.random),
                    torch.autocast(kind, dtype, enabled),
                ):
                    embeddings = ctx.embed(chunk.inputs)
            if not embeddings.requires_grad:  # frozen parts alone
                continue
            if ctx.sharded:
                torch.autograd.backward(embeddings, part)
                continue
            found = torch.autograd.grad(embeddings, ctx.trained, part, allow_unused=True)
            unused = frozenset(index for index, one in enumerate(found) if one is None)
            if unused not in checked:
                _refuse_reentrant(embeddings)
                checked.add(unused)
            _add(sums, found)
        return (None, None, None, *([None] if ctx.sharded else sums))


def _refuse_reentrant(embeddings: Tensor) -> None:
    """Raise RuntimeError if a reentrant checkpoint hides parameters, which autograd takes for unused."""
    nodes, known = [embeddings.grad_fn], {embeddings.grad_fn}
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise RuntimeError(
                "GradCache (`chunk_size`) gets no gradients out of reentrant activation checkpointing: use "
                "`checkpoint(..., use_reentrant=False)`, in transformers "
                "`gradient_checkpointing_enable({'use_reentrant': False})`"
            )
        new = {following for following, _ in node.next_functions} - known
        known |= new
        nodes.extend(new)


def _add(sums: list[Tensor | None], gradients: tuple[Tensor | None, ...]) -> None:
    for index, gradient in enumerate(gradients):
        if gradient is None:
            continue
        known = sums[index]
        # The first is copied: autograd may return one tensor twice, or one that is a view or expanded.
        sums[index] = gradient.clone() if known is None else known.add_(gradient)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The states of the CPU's and the device's generators: in host memory, no wait for the device."""
    if device.type == "cpu":
        return torch.get_rng_state(), None
    return torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*_which(device))


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1], *_which(device))


def _which(device: torch.device) -> list[torch.device]:
    return [] if device.type == "mps" else [device]  # there is only one, and its functions take no device


@contextmanager
def _replayed(device: torch.device, state: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    now = _random_state(device)
    _set_random_state(device, state)
    try:
        yield
    finally:
        _set_random_state(device, now)
