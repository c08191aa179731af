"""How a module was built, as plain data: what a checkpoint needs to build it again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from fanoise_lightning._lightning import INSTANTIATE_MODULE, INSTANTIATOR
from fanoise_lightning._names import HOME
from fanoise_lightning.training.trust import Described

__all__ = ["describe", "describe_module", "public_path", "with_public_paths"]

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
