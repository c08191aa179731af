"""Finding what makes the host wait for a device, without that device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

aten = torch.ops.aten

# What CUDA does by reading a value back: a number, how many elements are not zero, whether it converged.
READS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.repeat_interleave,
    aten.equal,
    aten.is_nonzero,
    aten._linalg_eigh,
    aten._linalg_svd,
    aten._linalg_solve_ex,
    aten.linalg_eig,
    aten.linalg_inv_ex,
    aten.linalg_cholesky_ex,
    aten.linalg_lu_factor_ex,
}


class Waited(Exception):
    """An operation would make the host wait."""


class NoWaiting(TorchDispatchMode):
    """Raises :class:`Waited` for operations on tensors off the CPU whose result the host would wait for.

    Attributes:
        seen: how many operations were off the CPU; if none were, nothing was checked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        if all(x.device.type == "cpu" for x in inputs):
            return func(*args, **(kwargs or {}))
        self.seen += 1
        if func.overloadpacket in READS or _by_mask(func, args):
            raise Waited(str(func))
        result = func(*args, **(kwargs or {}))
        if any(isinstance(x, Tensor) and x.device.type == "cpu" for x in tree_iter(result)):
            raise Waited(f"{func} to the CPU")
        return result


def _by_mask(func: Any, args: Any) -> bool:
    """Whether an index is a mask, whose ones have to be counted."""
    if func.overloadpacket not in (aten.index, aten.index_put, aten.index_put_):
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
