"""Small tensors of a batch travel from a worker through its pipe, not each in a file of shared memory.

A worker shares a tensor by a file descriptor, which takes the main process some tenths of a millisecond,
whatever its size. A batch of ours has a dozen, most of them indices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import get_worker_info

__all__ = ["Packing", "unpack"]

_SMALL = 2**16  # bytes: to copy more through a pipe takes longer than a descriptor


@dataclass(frozen=True)
class _Small:
    """A tensor whose values are in the message itself."""

    values: np.ndarray[Any, Any]


class Packing:
    """A collate function whose batches are packed if a worker calls it; see :func:`unpack`.

    Args:
        collate: turns rows into a batch.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        return batch if get_worker_info() is None else apply_to_collection(batch, Tensor, _pack)


def unpack(batch: Any) -> Any:
    """The batch that a worker packed; any other as it is."""
    return apply_to_collection(batch, _Small, lambda small: torch.from_numpy(small.values))


def _pack(tensor: Tensor) -> Any:
    # NumPy has no bfloat16
    if tensor.nbytes > _SMALL or tensor.requires_grad or tensor.dtype == torch.bfloat16:
        return tensor
    return _Small(tensor.numpy())
