"""Subsets are data, not code: name, meta-task and distribution come from ``subsets.json``.

An entry with a distribution is an evaluation subset, and says what the training subset of that name is; an
entry without one is of a training subset alone.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["DISTRIBUTIONS", "META_TASKS", "Subset", "check_names", "read_meta_tasks", "read_subsets"]

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
        _check_name(self.name)
        _check_choice(self.name, "meta_task", self.meta_task, META_TASKS)
        _check_choice(self.name, "distribution", self.distribution, DISTRIBUTIONS)
        if not isinstance(self.floors, Mapping):
            raise ValueError(f"subset `{self.name}`: `floors` must map names to numbers, got {self.floors!r}")
        for key, value in self.floors.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"subset `{self.name}`: floor `{key}` must lie in 0..1, got {value!r}")


def read_subsets(path: Path) -> dict[str, Subset]:
    """The evaluation subsets of ``subsets.json``: those with a distribution, in the order of the scoreboard.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a list of objects with the fields of `Subset`; the message names the file and
            the entry.
    """
    return {name: entry for name, entry in _read(path).items() if isinstance(entry, Subset)}


def read_meta_tasks(path: Path, *, trained: bool = False) -> dict[str, str]:
    """The meta-task of every entry of ``subsets.json``, by its name.

    Args:
        path: of the file.
        trained: only of those without a distribution, which are trained on alone.

    Raises:
        FileNotFoundError, ValueError: as `read_subsets`.
    """
    entries = _read(path).items()
    return {
        name: entry if isinstance(entry, str) else entry.meta_task
        for name, entry in entries
        if isinstance(entry, str) or not trained
    }


def _read(path: Path) -> dict[str, Subset | str]:
    """The entries: evaluation subsets, and meta-tasks of training subsets."""
    if not path.is_file():
        raise FileNotFoundError(
            f"`{path}` is missing: it lists the evaluation subsets as "
            '[{"name": ..., "meta_task": ..., "distribution": ...}, ...], '
            "and training subsets of other names without a distribution"
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"`{path}` must hold a list of subsets, got {type(entries).__name__}")
    subsets: dict[str, Subset | str] = {}
    for number, entry in enumerate(entries):
        try:
            subset = _entry(entry)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{path}`, entry {number}: {error}") from error
        if entry["name"] in subsets:
            raise ValueError(f"`{path}`, entry {number}: subset `{entry['name']}` is listed twice")
        subsets[entry["name"]] = subset
    return subsets


def _entry(entry: Any) -> Subset | str:
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object with name, meta_task and distribution, got {entry!r}")
    missing = [key for key in ("name", "meta_task") if key not in entry]
    if missing:
        raise ValueError(f"`{missing[0]}` is missing in {entry!r}")
    name, meta_task = entry["name"], entry["meta_task"]
    if "distribution" in entry:
        return Subset(name, meta_task, entry["distribution"], entry.get("floors") or {})
    _check_name(name)
    _check_choice(name, "meta_task", meta_task, META_TASKS)
    if "floors" in entry:
        raise ValueError(f"`distribution` is missing in {entry!r}: floors are of evaluation subsets")
    return meta_task


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name or "/" in name or "\\" in name:
        raise ValueError(f"a subset needs a `name` that can be a file name, got {name!r}")


def _check_choice(name: str, key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"subset `{name}`: `{key}` must be one of {', '.join(allowed)}, got {value!r}")


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
