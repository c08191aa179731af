"""What an argument may be, and how a wrong one is named: one rule for all."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any, get_args

__all__ = ["check_choice", "check_names", "check_positive"]


def check_choice(name: str, value: Any, choices: Any, where: str = "") -> None:
    """Raise ValueError if the value of an argument is none of the choices.

    Args:
        name: of the argument.
        value: its value.
        choices: what it may be: a ``Literal`` type, or a sequence.
        where: what the message begins with: the file or subset that the value is from.

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


def check_positive(name: str, value: float) -> None:
    """Raise ValueError if a number is not positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be positive and finite, got {value}")


def check_names(names: Iterable[str], known: Iterable[str], what: str) -> list[str]:
    """Return `names` as a list if all are `known` and none comes twice.

    Raises:
        ValueError: naming the first that is not known, and the known one nearest to it.
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
