"""Ranks with sharded parameters run the same modules equally often, whatever their batches hold.

With FSDP2 a block gathers its parameters from all ranks each time it runs, and reduces its gradients over all
ranks. A rank that runs a block which another rank skips waits forever, or mixes up shards. Therefore:

1. Before a forward pass the ranks tell each other, between the hosts only, how often each will run the
   encoder, and which parts of it (:meth:`~fanoise_lightning.Encoder.parts`).
2. A batch that lacks a part gets one more row that runs it. A missing batch becomes just such a row.
3. The embedding of that row is cut off: no result depends on it, and its gradient is zero.

A part that no rank needs runs nowhere and has no gradient, as in a single process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from fanoise_lightning.distributed import exchange
from fanoise_lightning.encoders.base import Encoder

__all__ = ["Padded", "embed_own_rows", "is_sharded", "largest", "same_calls", "same_parts"]

Inputs = dict[str, Tensor]


class Padded(dict[str, Tensor]):
    """A collated batch whose last row was added and has no embedding of its own."""


def is_sharded(encoder: nn.Module) -> bool:
    """Whether running the encoder is collective: all ranks must do the same."""
    return isinstance(encoder, FSDPModule)


def largest(number: int) -> int:
    """The largest of all ranks' numbers. Call it on all of them."""
    return max(other for (other,) in exchange((number,)))


def same_calls(encoder: Encoder, sides: Sequence[Sequence[Inputs]]) -> list[list[Inputs]]:
    """Make all ranks run the encoder equally often, and the same parts of it. Call it on all of them.

    Args:
        encoder: knows which parts a batch runs, and adds the rows.
        sides: the batches of the queries, of the targets, ... of this rank.

    Returns:
        The sides: equally many on every rank, with equally many batches. Batches that were absent or lacked a
        part are :class:`Padded`.
    """
    sides = [*sides, *[()] * (largest(len(sides)) - len(sides))]
    most = [max(counts) for counts in zip(*exchange(tuple(map(len, sides))))]
    batches: list[Inputs] = []
    for side, count in zip(sides, most):
        batches += [*side, *({} for _ in range(count - len(side)))]
    completed = iter(same_parts(encoder, batches))
    return [list(islice(completed, count)) for count in most]


def same_parts(encoder: Encoder, batches: Sequence[Inputs]) -> list[Inputs]:
    """Make all ranks run the same parts of the encoder. Call it on all of them, with equally many batches.

    Args:
        encoder: knows which parts a batch runs, and adds the rows.
        batches: those of this rank; ``{}`` for one without rows.

    Returns:
        The batches, :class:`Padded` where they lacked a part. A batch that has rows on no rank stays ``{}``.
    """
    own = [(bool(batch), *encoder.parts(batch)) for batch in batches]
    everyone = exchange(tuple(flag for flags in own for flag in flags))
    anyone = iter([any(ranks) for ranks in zip(*everyone)])
    needed = [tuple(islice(anyone, len(flags))) for flags in own]
    return [
        batch if flags == need else Padded(encoder.add_row(batch, _missing(flags, need)))
        for batch, flags, need in zip(batches, own, needed)
    ]


def _missing(flags: tuple[bool, ...], needed: tuple[bool, ...]) -> tuple[bool, ...]:
    return tuple(need and not flag for flag, need in zip(flags[1:], needed[1:]))


def embed_own_rows(encoder: nn.Module, inputs: Inputs, device: torch.device) -> Tensor:
    """The embeddings (B, D) of a batch on any device, without that of the row added to a padded one."""
    embeddings = encoder(**{name: value.to(device, non_blocking=True) for name, value in inputs.items()})
    return embeddings[:-1] if isinstance(inputs, Padded) else embeddings
