"""Which samples of a batch are the same, as far as the loss asks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from fanoise_lightning.losses.known_right import Identities

__all__ = ["identities", "loss_options"]


def identities(batch: Mapping[str, Any]) -> Identities:
    """The identities that a data module puts into a training batch."""
    names = ("target_id", "negative_id", "query_id", "mask_pairs")
    return Identities(*(batch.get(name) for name in names))


def loss_options(loss: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The identities of a batch that are parameters of the loss's forward, by their names there.

    For a loss without ``mask_pairs``, targets of pairs where it is false get -1, the id that equals no other.
    """
    ids = identities(batch)
    loss = getattr(loss, "_orig_mod", loss)  # a compiled module hides its signature
    known = _parameters(getattr(loss.forward, "__func__", loss.forward))
    if "mask_pairs" not in known and ids.target_ids is not None and ids.mask_pairs is not None:
        ids = ids._replace(target_ids=ids.target_ids.masked_fill(~ids.mask_pairs, -1))
    return {name: value for name, value in ids._asdict().items() if value is not None and name in known}


@lru_cache(maxsize=8)  # of the losses of a process; each step asks
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
