"""Finds the features among the arguments or the outputs of a module, whatever container they are in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from fanoise_lightning.callbacks._features import is_named_otherwise

Path = tuple[Any, ...]  # keys, from the outermost container to a tensor


@dataclass
class Entry:
    """A tensor in a container.

    Args:
        value: the tensor.
        paths: where it is, more than once if one tensor is passed twice.
    """

    value: Tensor
    paths: list[Path]

    @property
    def name(self) -> str:
        """What follows the module's path in `target`, such as ``"[1][hidden]"``; "" outside a container."""
        return "".join(f"[{key}]" for key in self.paths[0])

    @property
    def is_named_otherwise(self) -> bool:
        """Whether it is named like logits or masks."""
        return is_named_otherwise(str(self.paths[0][-1:]))

    def replaced(self, container: Any, new: Tensor) -> Any:
        """A copy of the container with another tensor in the place of this one."""
        for path in self.paths:
            container = _replaced(container, path, new)
        return container


def entries(container: Any, name: str = "") -> list[Entry]:
    """The floating tensors (B, D) or (B, N, D) at the outermost level that has one.

    Args:
        container: a tensor, or mappings, dataclasses, lists and tuples of them.
        name: only tensors whose name ends like this.
    """
    level: list[tuple[Path, Any]] = [((), container)]
    while level:
        found: dict[int, Entry] = {}
        for path, x in level:
            if isinstance(x, Tensor) and x.ndim in (2, 3) and x.is_floating_point():
                found.setdefault(id(x), Entry(x, [])).paths.append(path)
        chosen = [entry for entry in found.values() if entry.name.endswith(name)]
        if chosen:
            return chosen
        level = [((*path, key), value) for path, x in level for key, value in items_of(x).items()]
    return []


def likely(found: list[Entry], is_output: bool) -> list[Entry]:
    """The entries that may be the features; more than one if that is not clear.

    Entries that are named like logits or masks are passed over if there are others. Of an output, or of a
    container in the input, matrices (B, D) come first: they are what (B, N, D) beside them was pooled to.
    """
    found = [entry for entry in found if not entry.is_named_otherwise] or found
    pooled = [entry for entry in found if entry.value.ndim == 2 and (is_output or len(entry.paths[0]) > 1)]
    return pooled or found


def items_of(x: Any) -> Mapping[Any, Any]:
    """What a container holds, by key, name or index; empty for anything else."""
    if isinstance(x, Mapping):  # a ModelOutput too
        return x
    if is_dataclass(x) and not isinstance(x, type):
        return {field.name: getattr(x, field.name) for field in fields(x)}
    if isinstance(x, (list, tuple)):
        return dict(zip(getattr(x, "_fields", range(len(x))), x))
    return {}


def _replaced(container: Any, path: Path, new: Tensor) -> Any:
    if not path:
        return new
    key, inner = path[0], _replaced(items_of(container)[path[0]], path[1:], new)
    if isinstance(container, (list, tuple)):
        values = [inner if own == key else value for own, value in items_of(container).items()]
        return container._make(values) if hasattr(container, "_make") else type(container)(values)
    changed = copy.copy(container)
    if isinstance(container, Mapping):
        changed[key] = inner
    else:
        object.__setattr__(changed, key, inner)  # a frozen dataclass too
    return changed
