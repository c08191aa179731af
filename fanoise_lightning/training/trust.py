"""What loading a checkpoint may build: the classes it names are checked before anything is imported."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fanoise_lightning._lightning import CLASS_PATH, INSTANTIATE_MODULE, INSTANTIATOR
from fanoise_lightning.training.trust_types import KINDS, could_be_read, hints_of, is_part, kinds_of

__all__ = [
    "FACTORIES",
    "Described",
    "allowed_paths",
    "check_arguments",
    "described_arguments",
    "import_class",
    "is_under",
    "named_classes",
    "own_arguments",
]

# Modules, optimisers and schedules of these are built without asking.
_PACKAGES = ("fanoise_lightning", "torch.nn", "torch.optim", "lightning.pytorch.cli.ReduceLROnPlateau")

_INSTANTIATORS = (None, INSTANTIATE_MODULE, "pytorch_lightning.cli.instantiate_module")

FACTORIES: dict[str, Any] = {
    "optimizer": (OptimizerCallable, Optimizer),
    "lr_scheduler": (LRSchedulerCallable, LRScheduler),
}
"""The arguments that build something later: the type of the argument, and the type of what it builds."""


class Described:
    """A factory described by a checkpoint, checked only when it is called: loading weights does not need it.

    Args:
        name: ``"optimizer"`` or ``"lr_scheduler"``.
        description: ``{"class_path": ..., "init_args": {...}}``.
        allow: as in :func:`check_arguments`.
    """

    def __init__(self, name: str, description: Any, allow: str | Iterable[str] | None) -> None:
        self.name, self.description, self.allow = name, description, allowed_paths(allow)

    def __call__(self, argument: Any) -> Any:
        """Build the optimiser from parameters, or the schedule from an optimiser.

        Raises:
            ValueError: if the description names a class that is not allowed.
        """
        factory, kind = FACTORIES[self.name]
        _Check(self.allow).part(self.name, self.description, (kind,))
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--factory", type=factory)
        config = parser.parse_object({"factory": self.description})
        return parser.instantiate_classes(config).factory(argument)


def described_arguments(
    cls: type,
    hyperparameters: Mapping[str, Any],
    given: Iterable[str],
    allow: str | Iterable[str] | None,
    objects: bool,
) -> dict[str, Any]:
    """The checked arguments of a module, and Lightning's ``_instantiator``, from a checkpoint.

    Args:
        cls: the class of the module.
        hyperparameters: those of the checkpoint.
        given: the names of the arguments that the caller passes; they are omitted.
        allow: as in :func:`check_arguments`.
        objects: whether the hyperparameters may contain functions, classes and other live objects, because
            the caller asked to unpickle them.

    Returns:
        Optimiser and schedule as :class:`Described`, the other arguments as they are, and the default of each
        argument that is not described: Lightning, which reads the file again, must find nothing to add.

    Raises:
        ValueError: if a description names a class that is not allowed, or is not a description.
    """
    instantiator = hyperparameters.get(INSTANTIATOR)
    if instantiator not in _INSTANTIATORS:
        _refuse(INSTANTIATOR, f"{instantiator!r} is not Lightning's")
    given, allow = set(given), allowed_paths(allow)
    found = own_arguments(cls, hyperparameters, given)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(cls).parameters.items()
        if name not in given and parameter.default is not parameter.empty
    }
    factories = {
        name: Described(name, found.pop(name), allow)
        for name in FACTORIES
        if isinstance(found.get(name), (Mapping, str))
    }
    check_arguments(cls, found, allow, objects=objects)
    for name, factory in factories.items():
        described = factory.description
        path = described.get("class_path") if isinstance(described, Mapping) else described
        if not (isinstance(path, str) and is_under(path, (*_PACKAGES, *allow))):
            rank_zero_warn(
                f"the checkpoint's `{name}` is {path!r}, which is not built without asking. The module "
                f"is loaded without it; to train it again, pass `allow=[...]` or `{name}=...`"
            )
    return {**defaults, **found, **factories, INSTANTIATOR: INSTANTIATE_MODULE if instantiator else None}


def own_arguments(cls: type, hyperparameters: Mapping[str, Any], given: Iterable[str] = ()) -> dict[str, Any]:
    """The hyperparameters that are arguments of a class; the others are ignored, as in Lightning."""
    parameters = inspect.signature(cls).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    skipped = {INSTANTIATOR, CLASS_PATH, *given}
    return {
        name: value
        for name, value in hyperparameters.items()
        if name not in skipped and (takes_all or name in parameters)
    }


def check_arguments(
    cls: type, arguments: Mapping[str, Any], allow: str | Iterable[str] | None = (), objects: bool = False
) -> None:
    """Refuse arguments from a file through which jsonargparse would reach code that is not allowed.

    jsonargparse builds any class that the arguments name, at any depth. Where a parameter can be a function,
    a class or a config, it takes a string for the path of one.

    Args:
        cls: the class whose arguments they are.
        arguments: the arguments by name.
        allow: dotted paths of packages, modules or classes that may be named, in addition to this package's
            and torch's modules, optimisers and schedules.
        objects: as in :func:`described_arguments`.

    Raises:
        ValueError: with the place, the class, and what to do.
    """
    check, hints = _Check(allowed_paths(allow), objects), hints_of(cls)
    for name, value in arguments.items():
        if is_part(hints.get(name)) and value is not None:
            check.part(name, value, kinds_of(hints[name]))
        else:
            check.arguments(cls, {name: value}, "")


def allowed_paths(allow: str | Iterable[str] | None) -> tuple[str, ...]:
    """The value of an argument `allow`, one path, several or ``None``, as a tuple.

    Raises:
        ValueError: if one is not a dotted path.
    """
    if allow is None:
        return ()
    one = isinstance(allow, str | bytes) or not isinstance(allow, Iterable)
    paths: tuple[Any, ...] = (allow,) if one else tuple(allow)
    for path in paths:
        if not (isinstance(path, str) and all(map(str.isidentifier, path.split(".")))):
            raise ValueError(f"`allow` takes dotted paths of packages, modules or classes, got {path!r}")
    return paths


def named_classes(config: Any) -> set[str]:
    """Every ``class_path`` in a config."""
    if isinstance(config, Mapping):
        own = {config["class_path"]} if isinstance(config.get("class_path"), str) else set()
        return own.union(*map(named_classes, config.values()))
    if isinstance(config, (list, tuple)):
        return set().union(*map(named_classes, config))
    return set()


class _Check:
    """One walk through a description; its methods raise the ValueErrors of :func:`check_arguments`."""

    def __init__(self, allow: tuple[str, ...], objects: bool = False) -> None:
        self.allow, self.objects = allow, objects

    def part(self, place: str, value: Any, kinds: tuple[type, ...]) -> None:
        """Check what is given for an object of certain kinds, or of any: it must be a description."""
        if isinstance(value, Mapping) and "class_path" in value:
            cls = self.description(place, value)
            if kinds and not issubclass(cls, kinds):
                _refuse(place, f"{value['class_path']!r} is not a {kinds[0].__name__}")
        elif not self.objects or isinstance(value, (Mapping, str)):
            _refuse(place, f"{value!r} is not a dict with `class_path` and `init_args`")

    def description(self, place: str, value: Mapping[str, Any]) -> type:
        keys = ("class_path", "init_args", "dict_kwargs")
        if others := sorted(str(key) for key in value if key not in keys):
            _refuse(place, f"a description has no {', '.join(others)}")
        cls = self.named_class(place, value["class_path"])
        for key in keys[1:]:
            arguments = value.get(key)
            if isinstance(arguments, Mapping):
                self.arguments(cls, arguments, f"{place}.{key}.")
            elif arguments is not None:
                _refuse(place, f"`{key}` must be a dict, got {arguments!r}")
        return cls

    def arguments(self, cls: type, arguments: Mapping[str, Any], prefix: str) -> None:
        hints = hints_of(cls)
        for name, value in arguments.items():
            if not (isinstance(name, str) and name.isidentifier()):  # jsonargparse reads a.b as the b of a
                _refuse(prefix.rstrip("."), f"{name!r} is not the name of an argument")
            self.value(f"{prefix}{name}", value, hints.get(name, Any))

    def value(self, place: str, value: Any, annotation: Any) -> None:
        if isinstance(value, Mapping):
            if "class_path" in value:
                self.description(place, value)
                return
            for key, item in value.items():
                if not isinstance(key, str) or "class_path" in key or key.startswith("__"):
                    _refuse(place, f"{key!r} is not a key of plain data")
                self.value(f"{place}.{key}", item, annotation)
        elif isinstance(value, (list, tuple, set, frozenset)):
            for number, item in enumerate(value):
                self.value(f"{place}[{number}]", item, annotation)
        elif isinstance(value, str):
            if could_be_read(value, annotation):
                _refuse(place, f"{value!r} could be the path of code or of a config")
        elif not self.objects and not isinstance(value, (int, float, complex, type(None))):
            _refuse(place, f"{value!r} is not plain data")

    def named_class(self, place: str, path: Any) -> type:
        """The class at a path that is allowed; the class itself must be allowed too, wherever it is from."""
        if not (isinstance(path, str) and "." in path and all(map(str.isidentifier, path.split(".")))):
            _refuse(place, f"{path!r} is not the dotted path of a class")
        if not is_under(path, (*_PACKAGES, *self.allow)):
            _refuse_class(place, path, path)
        cls = import_class(path)
        if cls is None:
            _refuse(place, f"{path!r} is not a class")
        home = f"{cls.__module__}.{cls.__qualname__}"  # a module also has the names that it imports
        if path in self.allow or is_under(home, self.allow):
            return cls
        if not is_under(home, _PACKAGES):
            _refuse_class(place, path, home)
        if not issubclass(cls, KINDS):
            _refuse(place, f"{path!r} is not a module, optimiser or schedule")
        return cls


def import_class(path: str) -> type | None:
    """A class of a module, or one nested in it, but nothing in a module that this module imports."""
    names = path.split(".")
    size = len(names) - 1
    while True:
        try:
            found: Any = import_module(".".join(names[:size]))
            break
        except ModuleNotFoundError as error:
            if size == 1 or error.name is None or not is_under(path, [error.name]):
                raise
            size -= 1
    for name in names[size:]:
        found = getattr(found, name, None)
        if not isinstance(found, type):
            return None
    return found


def is_under(path: str, roots: Iterable[str]) -> bool:
    """Whether a dotted path is one of `roots`, or in one."""
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def _refuse_class(place: str, path: str, home: str) -> NoReturn:
    which = "" if path == home else f", which is {home!r}"
    package = home.partition(".")[0]
    _refuse(
        place,
        f"it names the class {path!r}{which}; only the modules, optimisers and schedules of this package and "
        f"torch are built without asking. If you trust it, pass `allow=[{package!r}]`, or "
        f"`--allow={package}` on the command line",
    )


def _refuse(place: str, why: str) -> NoReturn:
    name = place.partition(".")[0].partition("[")[0]
    raise ValueError(
        f"the checkpoint's description of `{place}` is refused: {why}. In Python you can also pass the "
        f"object itself, `load_from_checkpoint(..., {name}=...)`"
    )
