"""The bytes of the tensors that a computation holds at once: exact, on any device, of fake tensors too."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["TensorMemory", "peak_bytes"]


class TensorMemory(TorchDispatchMode):
    """Counts the storages of all new tensors that operations return, while they live.

    What an operation needs inside, such as the workspace of ``eigh``, is not counted.

    Attributes:
        now: the bytes of the storages that live.
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._count((args, kwargs), is_new=False)
        result = func(*args, **(kwargs or {}))
        self._count(result, is_new=True)
        return result

    def _count(self, values: Any, is_new: bool) -> None:
        for value in tree_iter(values):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage(), is_new)

    def _add(self, storage: torch.UntypedStorage, is_new: bool) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if is_new else 0
        self._known[key] = weakref.ref(storage)
        weakref.finalize(storage, self._freed, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int) -> None:
        self.now -= size
        self._known.pop(key, None)


def peak_bytes(run: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """The most bytes that a call holds beyond those before it: of CUDA's allocator, else of its tensors."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with TensorMemory() as memory:
        run()
    return memory.peak
