"""How a module was built, as plain data: what a checkpoint needs to build it again."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from fanoise_lightning.trust import Described

__all__ = ["describe"]

_PLAIN = (str, int, float, bool, type(None))


def describe(obj: object) -> dict[str, Any] | None:
    """Class path and constructor arguments of an object whose arguments are kept as attributes.

    Args:
        obj: an object that keeps each constructor argument as an attribute of the same name (the convention
            of scikit-learn's estimators), or a ``functools.partial`` of a class.

    Returns:
        ``{"class_path": ..., "init_args": {...}}``, as in a Lightning config; ``None`` if an argument is not
        kept, or is not made of numbers, strings, lists and dicts.

    Example:
        >>> from fanoise_lightning import InfoNCE
        >>> describe(InfoNCE(temperature=0.07))["init_args"]["temperature"]
        0.07
    """
    if isinstance(obj, Described):  # as the checkpoint says that it came from
        return obj.description
    if isinstance(obj, functools.partial):
        cls, arguments = obj.func, dict(obj.keywords)
        if not isinstance(cls, type) or obj.args:
            return None
    else:
        cls = type(obj)
        names = list(inspect.signature(cls.__init__).parameters)[1:]
        if not all(hasattr(obj, name) for name in names):
            return None
        arguments = {name: getattr(obj, name) for name in names}
    if "<locals>" in cls.__qualname__ or not _is_plain(arguments):
        return None
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
