"""Subsets are data, not code: their names, meta-tasks and distributions come from ``subsets.json``.

An entry with a distribution describes an evaluation subset, and the training subset of the same name if there
is one. An entry without a distribution describes a subset that is only trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fanoise_lightning.subset import Subset, check_meta_task, check_subset_name

__all__ = ["read_meta_tasks", "read_subsets"]


def read_subsets(path: Path) -> dict[str, Subset]:
    """Read the evaluation subsets: the entries with a distribution, in the order of the scoreboard.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a list of objects with the fields of `Subset`; names the file and the entry.
    """
    return {name: entry for name, entry in _read(path).items() if isinstance(entry, Subset)}


def read_meta_tasks(path: Path, *, trained: bool = False) -> dict[str, str]:
    """Read the meta-task of each subset, by the subset's name.

    Args:
        path: the path of ``subsets.json``.
        trained: read only the entries without a distribution: subsets that are only trained on.

    Raises:
        FileNotFoundError: as `read_subsets`.
        ValueError: as `read_subsets`.
    """
    meta_tasks = {}
    for name, entry in _read(path).items():
        if isinstance(entry, str):
            meta_tasks[name] = entry
        elif not trained:
            meta_tasks[name] = entry.meta_task
    return meta_tasks


def _read(path: Path) -> dict[str, Subset | str]:
    """The entries by name: an evaluation subset, or the meta-task of a subset that is only trained on."""
    if not path.is_file():
        raise FileNotFoundError(
            f"`{path}` is missing: it lists the evaluation subsets as "
            '[{"name": ..., "meta_task": ..., "distribution": ...}, ...], '
            "and subsets that are only trained on without a distribution"
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
        twin = next((s for s in subsets.values() if _same_task(s, subset)), None)
        if isinstance(twin, Subset):
            raise ValueError(
                f"`{path}`, entry {number}: `{twin.name}` has the task `{twin.task}` and the distribution "
                f"{twin.distribution} too: a task is shared by one subset of each distribution"
            )
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
        return Subset(name, meta_task, entry["distribution"], entry.get("floors") or {}, entry.get("task"))
    check_subset_name(name)
    check_meta_task(name, meta_task)
    if "floors" in entry or "task" in entry:
        raise ValueError(
            f"`distribution` is missing in {entry!r}: only evaluation subsets have floors and a task"
        )
    return meta_task


def _same_task(one: Subset | str, other: Subset | str) -> bool:
    return (
        isinstance(one, Subset)
        and isinstance(other, Subset)
        and one.task is not None
        and (one.task, one.distribution) == (other.task, other.distribution)
    )
