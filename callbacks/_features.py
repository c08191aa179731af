"""Finding the loss module of a LightningModule, and the features that go into it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from fanoise_lightning.losses import FeatureTap

SIDES = ("query", "target")

# These take logits (or log-probabilities) and labels: noise on them would be silently wrong.
_TAKES_LOGITS = (
    nn.CrossEntropyLoss,
    nn.NLLLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.MultiMarginLoss,
    nn.MultiLabelMarginLoss,
    nn.MultiLabelSoftMarginLoss,
    nn.KLDivLoss,
    nn.PoissonNLLLoss,
    nn.CTCLoss,
)

_REMEDY = """\
Name it, FANoise(target="path.to.loss"), where the loss is a module called with the two feature matrices; or,
where the loss is computed by functions, mark the place with one line:

    self.tap = FeatureTap()                       # in __init__; from fanoise_lightning import FeatureTap
    query, target = self.tap(query, target)       # right before the loss"""


def find_loss(pl_module: nn.Module, target: str | None = None) -> nn.Module:
    """The module whose two feature arguments are those of the contrastive loss.

    Args:
        pl_module: the LightningModule.
        target: the dotted path of the module below ``pl_module``; ``None`` takes the only
            :class:`~fanoise_lightning.FeatureTap`, else the only child whose class or name says loss.

    Raises:
        ValueError: if there is no such module, or more than one; the message lists the candidates and shows
            the one-line fix.
    """
    owner = type(pl_module).__name__
    if target is not None:
        try:
            return pl_module.get_submodule(target)
        except AttributeError:
            pass
        names = ", ".join(repr(name) for name, _ in pl_module.named_children()) or "none"
        raise ValueError(f"target={target!r} names no module of {owner}; its children are: {names}")
    candidates = _candidates(pl_module)
    if len(candidates) == 1:
        return candidates[0][1]
    if candidates:
        listed = ", ".join(f"{name!r} ({type(module).__name__})" for name, module in candidates)
        raise ValueError(f"{owner} has several loss modules: {listed}.\n{_REMEDY}")
    listed = ", ".join(f"{n!r} ({type(m).__name__})" for n, m in pl_module.named_children()) or "none"
    raise ValueError(
        f"{owner} has no child that looks like a contrastive loss (children: {listed}).\n{_REMEDY}"
    )


def _candidates(pl_module: nn.Module) -> list[tuple[str, nn.Module]]:
    taps: list[tuple[str, nn.Module]] = [
        (name, module) for name, module in pl_module.named_modules() if isinstance(module, FeatureTap)
    ]
    if taps:
        return taps
    return [(name, module) for name, module in pl_module.named_children() if _looks_like_loss(name, module)]


def _looks_like_loss(name: str, module: nn.Module) -> bool:
    if isinstance(module, (*_TAKES_LOGITS, Metric)):
        return False
    words = f"{name} {type(module).__name__}".lower()
    return any(word in words for word in ("loss", "criterion", "infonce", "ntxent"))


def read_features(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """The features in a call of the loss module: its first two 2-D floating point arguments, in order.

    Returns:
        ``{"query": (B, D), "target": (B, D)}``, or fewer entries if the call holds fewer such arguments.
    """
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    return dict(zip(SIDES, (value for _, value in _matrices(_flat(bound)))))


def replace_features(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], new: dict[str, Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the features of some sides replaced.

    Args:
        module: the loss module.
        args: the positional arguments of the call.
        kwargs: the keyword arguments of the call.
        new: side to its new (B, D) features; sides that are absent stay as they are.
    """
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    for side, (place, _) in zip(SIDES, _matrices(_flat(bound))):
        if side not in new:
            continue
        if isinstance(place, tuple):  # one of *features
            name, index = place
            values = list(bound.arguments[name])
            values[index] = new[side]
            bound.arguments[name] = tuple(values)
        else:
            bound.arguments[place] = new[side]
    return bound.args, bound.kwargs


def _flat(bound: inspect.BoundArguments) -> list[tuple[str | tuple[str, int], Any]]:
    kinds = {name: parameter.kind for name, parameter in bound.signature.parameters.items()}
    places: list[tuple[str | tuple[str, int], Any]] = []
    for name, value in bound.arguments.items():
        if kinds[name] is inspect.Parameter.VAR_POSITIONAL:
            places.extend(((name, index), item) for index, item in enumerate(value))
        else:
            places.append((name, value))
    return places


def _matrices(places: list[tuple[str | tuple[str, int], Any]]) -> list[tuple[str | tuple[str, int], Tensor]]:
    return [
        (place, value)
        for place, value in places
        if isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()
    ][:2]
