"""How a module was built, as plain data: what a checkpoint needs to build it again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from fanoise_lightning._lightning import INSTANTIATE_MODULE, INSTANTIATOR
from fanoise_lightning._names import HOME
from fanoise_lightning.training.trust import Described

__all__ = [
    "describe",
    "describe_module",
    "differences",
    "not_kept",
    "public_path",
    "warn_of_lost_arguments",
    "with_public_paths",
]

_PACKAGE = __name__.partition(".")[0]
_PLAIN = (str, int, float, bool, type(None))


def describe(obj: object) -> dict[str, Any] | None:
    """Class path and constructor arguments of an object whose arguments are kept as attributes.

    Args:
        obj: an object that keeps each constructor argument as an attribute of the same name (the convention
            of scikit-learn's estimators), or a ``functools.partial`` of a class.

    Returns:
        ``{"class_path": ..., "init_args": {...}}``, as in a Lightning config, modules among the arguments
        described likewise; ``None`` if an argument is not kept, or is not made of numbers, strings, lists and
        dicts.

    Example:
        >>> from fanoise_lightning import InfoNCE
        >>> describe(InfoNCE(temperature=0.07))["init_args"]["temperature"]
        0.07
    """
    if isinstance(obj, Described):  # the checkpoint's own description, unchanged
        return obj.description
    if isinstance(obj, functools.partial):
        cls, arguments = obj.func, dict(obj.keywords)
        if not isinstance(cls, type) or obj.args:
            return None
    else:
        cls = type(obj)
        # nn.Module's takes *args and **kwargs, but is called without any
        own = cls.__init__ is not nn.Module.__init__
        names = list(inspect.signature(cls.__init__).parameters)[1:] if own else []
        if not all(hasattr(obj, name) for name in names):
            return None
        arguments = {name: _described(getattr(obj, name)) for name in names}
    if "<locals>" in cls.__qualname__ or not _is_plain(arguments):
        return None
    return {"class_path": public_path(f"{cls.__module__}.{cls.__qualname__}"), "init_args": arguments}


def _described(value: object) -> object:
    # a module without a description stays as it is, which is not plain
    return (describe(value) or value) if isinstance(value, nn.Module) else value


def describe_module(parts: Mapping[str, object]) -> dict[str, Any]:
    """The hyperparameters from which Lightning can build a module again.

    Args:
        parts: the module's arguments that are objects, ``None`` for those that it does without. `encoder` and
            `loss` are among them.

    Returns:
        The description of each part that has one, and the name of Lightning's function that reads them; an
        empty dict if the encoder or the loss has none, and must be passed to ``load_from_checkpoint``.
    """
    described = {name: describe(part) for name, part in parts.items() if part is not None}
    if described["encoder"] is None or described["loss"] is None:
        return {}
    known = {name: description for name, description in described.items() if description is not None}
    return {**known, INSTANTIATOR: INSTANTIATE_MODULE}


def not_kept(obj: object) -> list[str]:
    """The constructor arguments of an object that are not attributes, or not plain data.

    Example:
        >>> not_kept(nn.Linear(2, 3))
        ['bias', 'device', 'dtype']
    """
    if type(obj).__init__ is nn.Module.__init__:
        return []
    names = list(inspect.signature(type(obj).__init__).parameters)[1:]
    kept = {name: getattr(obj, name) for name in names if hasattr(obj, name)}
    return [name for name in names if name not in kept or not _is_plain(_described(kept[name]))]


def warn_of_lost_arguments(parts: Mapping[str, object]) -> None:
    """Warn of each part that a checkpoint will not describe, while it can still be changed."""
    for name, part in parts.items():
        if describe(part) is None:
            lost = ", ".join(f"`{argument}`" for argument in not_kept(part))
            why = (
                f"it does not keep {lost} as plain attributes" if lost else "its class is local to a function"
            )
            rank_zero_warn(
                f"checkpoints will not describe the {name} {type(part).__name__}: {why}. Keep each "
                "constructor argument as an attribute of the same name, or pass "
                f"`{name}=` to `load_from_checkpoint`"
            )


def differences(ours: Any, theirs: Any) -> str:
    """How the description of an encoder differs from a checkpoint's, for a message; "" if it does not.

    Args:
        ours: ``{"class_path": ..., "init_args": {...}}``, or ``None``. An argument that is not given can be
            anything.
        theirs: the checkpoint's.

    Example:
        >>> ours = {"class_path": "a.B", "init_args": {"model": "x", "dim": 2}}
        >>> differences(ours, {"class_path": "a.B", "init_args": {"model": "y", "dim": 2}})
        "model='y' in the checkpoint, 'x' here"
    """
    if not (isinstance(ours, Mapping) and isinstance(theirs, Mapping)):
        return ""
    paths = [public_path(str(part.get("class_path"))) for part in (theirs, ours)]
    if paths[0] != paths[1]:
        return f"{paths[0]} in the checkpoint, {paths[1]} here"
    there, here = (part.get("init_args") or {} for part in (theirs, ours))
    changed = [name for name in here if name in there and _lists(here[name]) != _lists(there[name])]
    return ", ".join(f"{name}={there[name]!r} in the checkpoint, {here[name]!r} here" for name in changed)


def _lists(value: Any) -> Any:
    """A value with lists for tuples, as YAML keeps it."""
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def public_path(path: str) -> str:
    """The dotted path by which this package exports a class of its own; any other path stays as it is.

    Checkpoints name classes by it, so that files can move within the package.

    Example:
        >>> public_path("fanoise_lightning.losses.info_nce.InfoNCE")
        'fanoise_lightning.InfoNCE'
    """
    package, _, rest = path.partition(".")
    name = rest.rpartition(".")[2]
    return f"{package}.{name}" if package == _PACKAGE and name in HOME else path


def with_public_paths(value: Any) -> Any:
    """A copy of hyperparameters in which each ``class_path``, at any depth, is a `public_path`.

    Checkpoints of version 0.1 name this package's classes by the files that they were in.
    """
    if isinstance(value, Mapping):
        items = {key: with_public_paths(item) for key, item in value.items()}
        path = items.get("class_path")
        return items | {"class_path": public_path(path)} if isinstance(path, str) else items
    if type(value) in (list, tuple):
        return type(value)(map(with_public_paths, value))
    return value


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
