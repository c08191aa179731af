"""One rule for what an argument may be, and for the message about one that is wrong."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, get_args

__all__ = ["check_at_least", "check_choice", "check_names", "check_positive"]


def check_choice(name: str, value: Any, choices: Any, where: str = "") -> None:
    """Raise ValueError if the value of an argument is not one of the choices.

    Args:
        name: the name of the argument.
        value: its value.
        choices: the allowed values: a ``Literal`` type or a sequence.
        where: what the message starts with, such as the file or subset that the value comes from.

    Example:
        >>> from typing import Literal
        >>> check_choice("side", "querry", Literal["query", "target"])
        Traceback (most recent call last):
        ...
        ValueError: `side` must be one of 'query', 'target', got 'querry'
    """
    choices = get_args(choices) or choices
    if value not in choices:
        raise ValueError(f"{where}`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_at_least(name: str, value: float, least: float, where: str = "") -> None:
    """Raise ValueError if a number is less than `least`; `where` is what the message starts with.

    Anything else than a number is a TypeError.

    Example:
        >>> check_at_least("every_n_steps", 0, 1)
        Traceback (most recent call last):
        ...
        ValueError: `every_n_steps` must be at least 1, got 0
    """
    if not isinstance(value, Real):
        raise TypeError(f"{where}`{name}` must be a number, got {value!r}")
    if not value >= least:  # NaN is not
        raise ValueError(f"{where}`{name}` must be at least {least}, got {value}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError if a number is not positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be positive and finite, got {value}")


def check_names(names: Iterable[str], known: Iterable[str], what: str) -> list[str]:
    """Return `names` as a list if each of them is `known` and none is repeated.

    Raises:
        ValueError: if a name is unknown, with the known name nearest to it, or is given twice.
    """
    names, known = list(names), list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            hint = f"did you mean `{near[0]}`? Known: {', '.join(known)}" if near else "there are none"
            raise ValueError(f"unknown {what} `{name}`; {hint}")
        if names.count(name) > 1:
            raise ValueError(f"{what} `{name}` is given twice")
    return names
