"""What finished runs left in their folders, read as data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fanoise_lightning.subset import Subset

__all__ = ["Failure", "Record", "read_runs"]

SCORES, OUTCOMES, FAILED = "scores.json", "outcomes.json", "failed.json"
PLAN, FINISHED = "run.json", "finished.json"


@dataclass(frozen=True)
class Record:
    """A run with its scores.

    Args:
        folder: where it is.
        arm: what was trained: the folder above, relative to what all runs have in common.
        seed: of ``seed_everything``.
        version: of this package.
        data: the fingerprint of the evaluation data; ``None`` if there is none.
        kinds: subset to its meta-task, distribution and task.
        outcomes: subset to what each query scored, (Q,): 0 to 1, NaN for a skipped one.
        metrics: the latest that were logged in training.
    """

    folder: Path
    arm: str
    seed: int
    version: str
    data: str | None
    kinds: dict[str, Subset]
    outcomes: dict[str, NDArray[np.float64]]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error, or is not at its end: its scores are not those of its arm."""

    folder: Path
    arm: str
    error: str


def read_runs(paths: Iterable[str | Path]) -> tuple[list[Record], list[Failure]]:
    """Read runs from their folders, or from folders that contain them.

    Raises:
        FileNotFoundError: if a path is not a folder, or contains no run.
        ValueError: if a file is not what a run writes; the message names it.
    """
    found = [folder for path in paths for folder in _run_folders(Path(path).expanduser())]
    folders = list(dict.fromkeys(folder.resolve() for folder in found))
    if not folders:
        raise FileNotFoundError("no runs were given")
    above = [folder.parent for folder in folders]
    root = Path(commonpath(above)) if len(set(above)) > 1 else above[0].parent
    records, failures = [], []
    for folder in folders:
        arm = folder.parent.relative_to(root).as_posix()
        if (folder / FAILED).exists():  # with scores, if it had been validated before
            failures.append(Failure(folder, arm, str(_json(folder / FAILED).get("error", "unknown"))))
        elif (folder / PLAN).exists() and not (folder / FINISHED).exists():
            failures.append(Failure(folder, arm, "not finished: it runs, or was killed"))
        else:
            records.append(_read(folder, arm))
    return records, failures


def _run_folders(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder")
    files = [*path.rglob(SCORES), *path.rglob(FAILED)]
    folders = sorted({file.parent for file in files})
    if not folders:
        raise FileNotFoundError(f"{path} contains no run: no {SCORES}, which ScoreboardWriter writes")
    yield from folders


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def _read(folder: Path, arm: str) -> Record:
    scores = _json(folder / SCORES)
    if not (folder / OUTCOMES).exists():
        raise ValueError(
            f"{folder} has no {OUTCOMES}: the run was made by a version that did not write what each query "
            "scored, or by another module; validate it again"
        )
    outcomes = _json(folder / OUTCOMES)
    try:
        run, subsets = scores["run"], scores["scoreboard"]["subsets"]
        kinds = {
            name: Subset(name, s["meta_task"], s["distribution"], task=s.get("task"))
            for name, s in subsets.items()
        }
        seed, step = run["seed"], scores["step"]
        values = {name: _outcomes(name, outcomes["outcomes"][name]) for name in kinds}
        logged = scores.get("metrics", {}).items()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / SCORES} and {OUTCOMES} are not those of a run: {error!r}") from error
    if outcomes.get("step") != step:
        raise ValueError(
            f"{folder}: {SCORES} is of step {step}, {OUTCOMES} of step {outcomes.get('step')}: the run was "
            "interrupted in between; validate it again"
        )
    if not isinstance(seed, int):
        raise ValueError(
            f"{folder / SCORES}: the run has no seed; runs are paired by that of seed_everything"
        )
    metrics = {str(k): float(v) for k, v in logged if isinstance(v, int | float)}
    return Record(folder, arm, seed, str(run.get("version")), run.get("data"), kinds, values, metrics)


def _outcomes(name: str, values: Any) -> NDArray[np.float64]:
    array = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    if array.ndim != 1 or not len(array) or ((array < 0) | (array > 1)).any():
        raise ValueError(f"subset {name!r}: outcomes must be numbers from 0 to 1, or null")
    return array
