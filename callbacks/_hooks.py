"""Hooks on a module that stay behind when the module is copied or pickled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# Takes any arguments, does nothing, and can be unpickled without this package.
_NOTHING = nullcontext().__exit__


class _Hook:
    """Calls a method of a callback; a copy of it does nothing.

    Modules are copied and pickled with their hooks. A callback holds the trainer, and through it the data: a
    copy must neither take them along nor do the callback's work a second time.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    @torch.compiler.disable
    def __call__(self, *args: Any) -> Any:
        return self._method(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _NOTHING

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def hook_before(module: nn.Module, method: Callable[..., Any], first: bool = False) -> RemovableHandle:
    """Call ``method(module, args, kwargs)`` before the module's forward, before or after its other hooks."""
    return _hooked(module.register_forward_pre_hook(_Hook(method), prepend=first, with_kwargs=True))


def hook_after(module: nn.Module, method: Callable[..., Any]) -> RemovableHandle:
    """Call ``method(module, args, kwargs, output)`` after the module's forward."""
    return _hooked(module.register_forward_hook(_Hook(method), with_kwargs=True))


def _hooked(handle: RemovableHandle) -> RemovableHandle:
    torch.compiler.reset()  # code compiled earlier would silently ignore the hook
    return handle
