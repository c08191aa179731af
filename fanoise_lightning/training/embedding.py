"""How collated batches go through the encoder: whole or in chunks, alone or in step with the other ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.sides import embedding_side
from fanoise_lightning.training.grad_cache import embed_in_chunks
from fanoise_lightning.training.lockstep import is_sharded, same_calls, same_parts

__all__ = ["embed_batch", "embed_sides", "eval_mode", "on_cpu", "warn_of_batch_norm"]

Embed = Callable[[dict[str, Tensor]], Tensor]
ChunkSize = int | tuple[int, int] | None


def embed_sides(embed: Embed, encoder: Encoder, sides: list[Any], chunk_size: ChunkSize) -> list[Tensor]:
    """The embeddings of a training batch. With a sharded encoder, call it on all ranks.

    Args:
        embed: turns collated samples into embeddings, by way of the encoder.
        encoder: the encoder.
        sides: queries, targets and, if there are any, hard negatives: each collated, or a list of collated
            chunks.
        chunk_size: how the sides were cut into chunks, for GradCache; ``None`` if they were not.

    Returns:
        The embeddings of queries and targets, (B, D), and of hard negatives, (M, D).

    Raises:
        TypeError: if a side is not a list of chunks, but should be.
    """
    if chunk_size is None:
        sides = [[side] for side in sides]
    elif not all(isinstance(side, list) for side in sides):
        raise TypeError(
            f"with chunk_size={chunk_size}, each side of a batch must be a list of collated chunks: use "
            "MMEBDataModule or PairDataModule, or remove `chunk_size`"
        )
    own, names = len(sides), ("query", "target", "target")  # hard negatives are keys like the targets
    if is_sharded(encoder):
        sides = same_calls(encoder, sides)

    def embed_named(chunk: tuple[str, dict[str, Tensor]]) -> Tensor:
        with embedding_side(chunk[0]):
            return embed(chunk[1])

    sides = [[(name, chunk) for chunk in chunks] for name, chunks in zip(names, sides, strict=False)]
    if chunk_size is None:
        embedded = [embed_named(side) for (side,) in sides]
    else:
        embedded = embed_in_chunks(embed_named, sides, list(encoder.parameters()))
    if len(embedded) > own:  # only other ranks have this side: no rows here, but part of the graph
        embedded = [*embedded[: own - 1], torch.cat(embedded[own - 1 :])]
    return embedded


def embed_batch(embed: Embed, encoder: Encoder, inputs: dict[str, Tensor], device: torch.device) -> Tensor:
    """The embeddings (n, D) of a batch outside training. With a sharded encoder, call it on all ranks.

    Args:
        embed: turns collated samples into embeddings, by way of the encoder.
        encoder: the encoder.
        inputs: n collated samples, or ``{}`` for none.
        device: the encoder's.
    """

    def run(inputs: dict[str, Tensor]) -> Tensor:
        return embed(inputs) if inputs else torch.empty(0, encoder.embedding_dim, device=device)

    if not is_sharded(encoder):
        return run(inputs)
    (inputs,) = same_parts(encoder, [inputs])
    # the first pass allocates the buffers of whole parameters: training cannot use those of inference mode
    with torch.inference_mode(False), torch.no_grad():
        return run(inputs)


def warn_of_batch_norm(encoder: nn.Module, chunk_size: ChunkSize) -> None:
    """Warn if an encoder that is trained with GradCache has batch norm."""
    if any(isinstance(part, _BatchNorm) for part in encoder.modules()):
        rank_zero_warn(
            f"with `chunk_size`, batch norm sees chunks of {chunk_size} instead of the batch, and each of "
            "them twice: prefer an encoder without batch norm"
        )


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and each of its parts back into its own mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def on_cpu(module: nn.Module) -> Iterator[None]:
    """Move a module to the CPU, and back afterwards."""
    home = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    module.cpu()
    try:
        yield
    finally:
        module.to(home)
