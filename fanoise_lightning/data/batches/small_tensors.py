"""Small tensors of a batch travel from a worker through its pipe, not each in a file of shared memory.

A worker shares a tensor by a file descriptor, which takes the main process some tenths of a millisecond,
whatever its size. A batch of ours has a dozen, most of them indices.
"""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

__all__ = ["send_small_tensors"]

_SMALL = 2**16  # bytes: to copy more through a pipe takes longer than a descriptor


def send_small_tensors() -> None:
    """Let this process, a worker, send the values of small tensors instead of sharing their memory."""
    ForkingPickler.register(Tensor, _reduce)


def _reduce(tensor: Tensor) -> Any:
    try:
        if tensor.nbytes <= _SMALL:
            return torch.from_numpy, (tensor.numpy(),)
    except (
        RuntimeError,
        TypeError,
    ):  # unknown to NumPy: bfloat16, sparse, nested, with a gradient
        pass
    return reduce_tensor(tensor)
