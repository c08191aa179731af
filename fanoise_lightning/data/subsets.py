"""Subsets are data, not code: name, meta-task and distribution come from ``subsets.json``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["DISTRIBUTIONS", "META_TASKS", "Subset", "check_names", "read_subsets"]

META_TASKS = ("classification", "vqa", "retrieval", "grounding")
DISTRIBUTIONS = ("IND", "OOD")


@dataclass(frozen=True)
class Subset:
    """What is known of an evaluation subset besides its rows.

    Args:
        name: the name of its file under ``eval/``.
        meta_task: ``"classification"``, ``"vqa"``, ``"retrieval"`` or ``"grounding"``.
        distribution: ``"IND"`` if the training pairs come from the same source, else ``"OOD"``.
        floors: precision@1 (0 to 1) that needs no understanding, by name, such as ``"chance"``.

    Raises:
        ValueError: if a field is not one of those.

    Example:
        >>> Subset("SUN397", "classification", "IND", {"chance": 1 / 397}).meta_task
        'classification'
    """

    name: str
    meta_task: str
    distribution: str
    floors: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "/" in self.name or "\\" in self.name:
            raise ValueError(f"a subset needs a `name` that can be a file name, got {self.name!r}")
        for key, allowed in (("meta_task", META_TASKS), ("distribution", DISTRIBUTIONS)):
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"subset `{self.name}`: `{key}` must be one of {', '.join(allowed)}, "
                    f"got {getattr(self, key)!r}"
                )
        if not isinstance(self.floors, Mapping):
            raise ValueError(f"subset `{self.name}`: `floors` must map names to numbers, got {self.floors!r}")
        for key, value in self.floors.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"subset `{self.name}`: floor `{key}` must lie in 0..1, got {value!r}")


def read_subsets(path: Path) -> dict[str, Subset]:
    """Read ``subsets.json``: a list of objects with the fields of `Subset`, in the order of the scoreboard.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a list; the message names the file and the entry.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"`{path}` is missing: it lists the evaluation subsets as "
            '[{"name": ..., "meta_task": ..., "distribution": ...}, ...]'
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"`{path}` must hold a list of subsets, got {type(entries).__name__}")
    subsets: dict[str, Subset] = {}
    for number, entry in enumerate(entries):
        try:
            subset = _subset(entry)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{path}`, entry {number}: {error}") from error
        if subset.name in subsets:
            raise ValueError(f"`{path}`, entry {number}: subset `{subset.name}` is listed twice")
        subsets[subset.name] = subset
    return subsets


def _subset(entry: Any) -> Subset:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object with name, meta_task and distribution, got {entry!r}")
    missing = [key for key in ("name", "meta_task", "distribution") if key not in entry]
    if missing:
        raise ValueError(f"`{missing[0]}` is missing in {entry!r}")
    return Subset(entry["name"], entry["meta_task"], entry["distribution"], entry.get("floors") or {})


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
