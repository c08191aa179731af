"""Scaling laws: how much noise a direction gets, by its singular value.

Three laws have a name and need no singular vectors. Any other law is a function of the singular values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor

__all__ = ["Law", "NamedLaw", "Scaling", "check_scaling", "law_name", "law_weights"]

NamedLaw = Literal["uniform", "linear", "sublinear"]
Law = Callable[[Tensor], Any]
"""Singular values (R,), largest first, to the weights of their directions (R,), at least 0, of any scale."""

Scaling = NamedLaw | Law


def check_scaling(scaling: Any) -> None:
    """Raise ValueError unless a scaling law has a known name or is a function.

    Example:
        >>> check_scaling("cubic")
        Traceback (most recent call last):
        ...
        ValueError: `scaling` must be one of 'uniform', 'linear', 'sublinear', or a function, got 'cubic'
    """
    if not callable(scaling) and scaling not in get_args(NamedLaw):
        names = ", ".join(map(repr, get_args(NamedLaw)))
        raise ValueError(f"`scaling` must be one of {names}, or a function, got {scaling!r}")


def law_name(scaling: Scaling | Callable[..., object]) -> str:
    """What messages and checkpoints call a law: its name, or the dotted path of the function.

    Example:
        >>> import torch
        >>> law_name("linear"), law_name(torch.sqrt)
        ('linear', 'torch.sqrt')
    """
    if isinstance(scaling, str):
        return scaling
    named = scaling if hasattr(scaling, "__name__") else type(scaling)
    return f"{named.__module__}.{named.__name__}"


def law_weights(law: Law, values: Tensor) -> Tensor:
    """The weights that a law gives to singular values (R,).

    Raises:
        ValueError: if the law does not return R numbers; on the CPU also if one of them is negative or not
            finite, or all are 0. Elsewhere that check would wait for the device.

    Example:
        >>> import torch
        >>> law_weights(torch.sqrt, torch.tensor([4.0, 1.0]))
        tensor([2., 1.])
    """
    weights = law(values)
    shape = tuple(weights.shape) if isinstance(weights, Tensor) else None
    if shape != tuple(values.shape):
        got = f"shape {shape}" if shape is not None else f"a {type(weights).__name__}"
        raise ValueError(
            f"the scaling law {law_name(law)} must return a tensor ({len(values)},), one weight for each "
            f"singular value, got {got}"
        )
    weights = weights.to(values)
    if weights.device.type == "cpu":
        wrong = weights[~(weights.isfinite() & (weights >= 0))]
        if len(wrong):
            raise ValueError(
                f"the scaling law {law_name(law)} must return weights that are finite and at least 0, got "
                f"{wrong[0]:g}"
            )
        if not weights.any():
            raise ValueError(f"the scaling law {law_name(law)} returned the weight 0 for every direction")
    return weights
