"""Finds the features of queries, targets and hard negatives among the arguments of a loss module."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from fanoise_lightning.callbacks._loss_search import REMEDY, words
from fanoise_lightning.losses import FeatureTap

SIDES = ("query", "target")

# A parameter of the loss's forward, and the index or key in it for a list, *args or **kwargs.
Place = tuple[str, int | str | None]

_NO_FEATURES = {
    *("logit", "logits", "label", "labels", "onehot", "mask", "masks", "weight", "weights"),
    *("sim", "sims", "similarity", "similarities", "score", "scores", "distance", "distances"),
    *("prob", "probs", "probability", "probabilities"),
}
# These outweigh a word above: "label_embeddings" are features.
_FEATURES = {
    *("embedding", "embeddings", "emb", "embs"),
    *("feature", "features", "feat", "feats"),
}
_NEGATIVE = {"n", "neg", "negs", "negative", "negatives", "hard", "queue", "bank"}
# Names of a third matrix of the features' width that holds no hard negatives.
_NO_NEGATIVE = {
    *("teacher", "student", "dist", "distill", "momentum", "ema", "ref", "reference"),
    *("proto", "protos", "prototype", "prototypes", "center", "centers", "centroid", "centroids"),
}


@dataclass
class Call:
    """A call of a loss module, and where the features are among its arguments.

    Args:
        bound: the arguments.
        places: the places of the query, the target and the hard negatives, as far as there are any.
    """

    bound: inspect.BoundArguments
    places: list[Place]

    def features(self) -> dict[str, list[Tensor]]:
        """``{"query": [(B, D)], "target": [(B, D), hard negatives (M, D), ...]}``, or fewer entries."""
        return {
            side: [_get(self.bound, place).flatten(0, -2) for place in self._of(side)]
            for side in SIDES
            if self._of(side)
        }

    def names(self) -> dict[str, list[str]]:
        """The names of the arguments in the loss, in the form of :meth:`features`."""
        return {side: [_name(place) for place in self._of(side)] for side in SIDES if self._of(side)}

    def replaced(self, new: dict[str, list[Tensor]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with `new` features, in the form of :meth:`features`; others stay as they are."""
        for side, features in new.items():
            for place, value in zip(self._of(side), features):
                _set(self.bound, place, value.view_as(_get(self.bound, place)))
        return self.bound.args, self.bound.kwargs

    def _of(self, side: str) -> list[Place]:
        return self.places[:1] if side == "query" else self.places[1:]


class FeatureFinder:
    """Tells which arguments of a loss module are features.

    The query and the target are the first two floating point matrices of equal width, in the order of the
    signature. Logits, labels, masks, weights and similarities are passed over: an argument is judged by its
    name, and by its values in the first call. Hard negatives are further tensors of that width, (M, D) or
    (B, K, D), alone or in a list: those that are named as such, those in the same ``*args`` as the target, or
    else the only other one, unless it is named like a teacher's features or like prototypes. The arguments
    of a :class:`~fanoise_lightning.FeatureTap` are not judged.

    Args:
        loss: the module.
    """

    def __init__(self, loss: nn.Module) -> None:
        self._is_tap = isinstance(loss, FeatureTap)
        loss = getattr(loss, "_orig_mod", loss)  # a compiled module has no signature of its own
        self._loss = type(loss).__name__
        # a child with weights: the encoder, in losses that are called with token ids
        self._inner = next((name for name, x in loss.named_children() if [*x.parameters()]), None)
        # once, as it takes as long as a small loss
        self._signature = inspect.signature(loss.forward)
        self._reasons: dict[Place, str] = {}  # why an argument is not features; "" for features

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """The features of a call; ``None`` for arguments that the module does not accept."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:  # the module raises a better error
            return None
        tensors = _tensors(bound)
        if self._is_tap:
            return Call(bound, list(tensors))
        self._judge({place: x.detach() for place, x in tensors.items() if place not in self._reasons})
        return Call(bound, _pick({place: x for place, x in tensors.items() if not self._reasons.get(place)}))

    def clean(self, call: Call) -> dict[str, Tensor]:
        """The arguments that stay clean although they have the features' width and were not passed over."""
        width = _get(call.bound, call.places[0]).shape[-1] if call.places else None
        return {
            _name(place): x
            for place, x in _tensors(call.bound).items()
            if place not in call.places and x.shape[-1] == width and not self._reasons.get(place)
        }

    def error(self, call: Call, sides: tuple[str, ...], path: str) -> ValueError:
        """The error for a call without features of all ``sides``; it names what was passed over."""
        passed_over = [
            f"`{_name(place)}` {tuple(x.shape)} {self._reasons.get(place) or 'has no partner of its width'}"
            for place, x in _tensors(call.bound).items()
            if place not in call.places
        ]
        found = f"`{_name(call.places[0])}` alone" if call.places else "none"
        found += f" in a call of {self._loss}{': ' if passed_over else ''}{', '.join(passed_over)}"
        if self._inner and not call.places:
            remedy = (
                f"If that loss computes the embeddings itself, add the noise to what '{path}.{self._inner}' "
                f'returns: FANoise(target="{path}.{self._inner}", where="output").'
            )
        else:
            remedy = "If that loss takes embeddings and labels, pass FANoise(sides=['query']).\n" + REMEDY
        return ValueError(
            f"FANoise needs the features of {' and '.join(sides)} as matrices (B, D) of one width, and "
            f"found {found}.\n{remedy}"
        )

    def _judge(self, new: dict[Place, Tensor]) -> None:
        for place, x in new.items():
            if is_named_otherwise(_name(place)):
                self._reasons[place] = "is named like logits, labels, masks, weights or similarities"
            elif x.any() and not x.isnan().any():  # otherwise the batch is broken, and a later one decides
                self._reasons[place] = _looks_like(x)
        for (a, x), (b, y) in combinations(new.items(), 2):
            if (
                x.ndim == y.ndim == 2
                and x.shape == y.T.shape
                and 1 < len(x) == len(y)
                and torch.allclose(x, y.T)
            ):
                self._reasons[a] = self._reasons[b] = "is the transpose of another, as logits are"


def is_named_otherwise(name: str) -> bool:
    """Whether a name is one of logits, labels, masks, weights or similarities, not of features."""
    said = _said(name)
    return bool(said & _NO_FEATURES) and not said & _FEATURES


def parameters_of(module: nn.Module) -> list[str]:
    """The names of the parameters of a module's forward; none if it is not a Python function."""
    try:
        return [*inspect.signature(getattr(module, "_orig_mod", module).forward).parameters]
    except (TypeError, ValueError):
        return []


def _pick(tensors: dict[Place, Tensor]) -> list[Place]:
    """The query, the target and the hard negatives; only the query if no other matrix has its width."""
    width = {place: x.shape[-1] for place, x in tensors.items()}
    keys = [place for place, x in tensors.items() if x.ndim == 2 and not _is(place, _NEGATIVE)]
    for query, target in combinations(keys, 2):
        if width[query] == width[target]:
            break
    else:
        return keys[:1]
    further = [p for p in width if p not in (query, target) and width[p] == width[query]]
    negatives = [p for p in further if _is(p, _NEGATIVE) or p[0] == target[0]]
    if not negatives and len(further) == 1 and not _is(further[0], _NO_NEGATIVE):
        negatives = further
    return [query, target, *negatives]


def _is(place: Place, names: set[str]) -> bool:
    return bool(names & _said(_name(place)))


@lru_cache
def _said(name: str) -> frozenset[str]:
    return frozenset(words(name))  # the same few names in every batch


def _looks_like(x: Tensor) -> str:
    """Why the values of a tensor cannot be features; "" if they can."""
    if ((x == 0) | (x == 1)).all() or ((x == 0) | (x == -torch.inf)).all():
        return "holds only zeros and ones (or infinities), as labels and masks do"
    if (x >= 0).all() and (x.sum(-1) - 1).abs().max() < 1e-3:
        return "has rows that sum to one, as probabilities do"
    return ""


def _tensors(bound: inspect.BoundArguments) -> dict[Place, Tensor]:
    """The floating point tensors of 2 or 3 dimensions among the arguments, in the order of the signature."""
    places: dict[Place, Any] = {}
    for name, value in bound.arguments.items():
        if isinstance(value, (list, tuple)):
            places |= {(name, index): item for index, item in enumerate(value)}
        elif bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            places |= {(name, key): item for key, item in value.items()}
        else:
            places[name, None] = value
    return {
        place: x
        for place, x in places.items()
        if isinstance(x, Tensor) and x.ndim in (2, 3) and x.is_floating_point()
    }


def _name(place: Place) -> str:
    name, inner = place
    if isinstance(inner, str):
        return inner
    return name if inner is None else f"{name}[{inner}]"


def _get(bound: inspect.BoundArguments, place: Place) -> Tensor:
    name, inner = place
    value = bound.arguments[name]
    return value if inner is None else value[inner]


def _set(bound: inspect.BoundArguments, place: Place, new: Tensor) -> None:
    name, inner = place
    if inner is None:
        bound.arguments[name] = new
        return
    values = bound.arguments[name]
    changed: Any = dict(values) if isinstance(values, dict) else list(values)
    changed[inner] = new
    bound.arguments[name] = tuple(changed) if isinstance(values, tuple) else changed
