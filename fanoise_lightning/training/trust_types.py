"""Type hints of arguments that come from a file: where a string can be nothing but a string."""

from __future__ import annotations

import collections.abc
import inspect
import os
import types
import typing
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Literal, Union, get_args, get_origin, is_typeddict

import yaml
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["KINDS", "could_be_read", "hints_of", "is_part", "kinds_of"]

KINDS = (nn.Module, Optimizer, LRScheduler)


def hints_of(cls: type) -> dict[str, Any]:
    """The type hints of a class's constructor; none at all if one of them cannot be resolved."""
    try:
        return typing.get_type_hints(inspect.getattr_static(cls, "__init__"))
    except Exception:  # of any kind: annotations are expressions
        return {}


def could_be_read(text: str, annotation: Any) -> bool:
    """Whether jsonargparse might turn a string, given for a parameter, into something else."""
    if _is_plain(annotation):
        return False
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return True
    if isinstance(parsed, (dict, list)) or "://" in text or os.path.isfile(text):
        return True
    return _is_code(annotation) or ("." in text and all(map(str.isidentifier, text.split("."))))


def _is_plain(annotation: Any) -> bool:
    """Whether a type consists of strings, numbers, paths, enums and containers of these."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None:
        if is_typeddict(annotation):
            return all(map(_is_plain, typing.get_type_hints(annotation).values()))
        if isinstance(annotation, type) and issubclass(annotation, Enum):
            return True
        return annotation in (str, int, float, bool, complex, type(None), ..., Path, PurePath)
    if origin is collections.abc.Callable or not arguments:
        return False
    known = origin in (Union, types.UnionType, list, tuple, set, frozenset, dict)
    known = known or origin.__module__ == "collections.abc"
    return origin is Literal or (known and all(map(_is_plain, arguments)))


def _is_code(annotation: Any) -> bool:
    """Whether a type accepts functions or objects, but no strings."""
    parts = _parts(annotation)
    if any(part is str or get_origin(part) is Literal for part in parts):
        return False
    return is_part(annotation) or any(
        get_origin(part) is type
        or (isinstance(part, type) and part.__module__ not in ("builtins", "typing") and not _is_plain(part))
        for part in parts
    )


def is_part(annotation: Any) -> bool:
    """Whether a type accepts a factory, a module, an optimiser or a schedule."""
    callables = any(get_origin(part) is collections.abc.Callable for part in _parts(annotation))
    return callables or bool(kinds_of(annotation))


def kinds_of(annotation: Any) -> tuple[type, ...]:
    """The classes of modules, optimisers and schedules that a type accepts."""
    return tuple(part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, KINDS))


def _parts(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
