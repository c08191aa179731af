"""What a study runs: every arm under every seed, in every regime.

A study is a YAML file::

    config: emoji_head.yaml        # of `fanoise fit`; several files are merged in order
    seeds: 0-11                    # or a list
    baseline: no noise
    arms:                          # what each changes: the options of `fanoise fit`, without their dashes
      no noise: {noise.alpha: 0}
      sublinear 0.5: {noise.alpha: 0.5}
    regimes:                       # optional: crossed with the arms
      one pass: {trainer.max_steps: 60}
      40 passes: {trainer.max_steps: 2400}

A run is one arm with one seed in one regime. The seed is that of ``seed_everything``: all arms of a seed
begin with the same weights and see the same data in the same order.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fanoise_lightning._checks import check_names

__all__ = ["Run", "Study", "parse_seeds"]

Overrides = Mapping[str, Any]

_NAME = re.compile(r"[^\W_][\w.,+= -]*")  # a folder, on any file system
_LONGEST = 255  # bytes
_KEYS = ("config", "arms", "seeds", "baseline", "regimes")
_REQUIRED = ("config", "arms", "seeds")
# what the study itself decides for each run
_OURS = (
    "config",
    "seed_everything",
    "trainer.logger",
    "trainer.default_root_dir",
    "scoreboard.path",
    "spectrum.path",
    "ckpt_path",
)


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        regime: ``""`` in a study without regimes.
        arm: what is compared.
        seed: of ``seed_everything``.
        options: the options of ``fanoise fit``, as on its command line.
    """

    regime: str
    arm: str
    seed: int
    options: Sequence[str]

    @property
    def folder(self) -> Path:
        """Where the run is kept, relative to the study's folder."""
        return Path(self.regime, self.arm, f"seed-{self.seed}")

    def __str__(self) -> str:
        return f"arm {self.arm!r}{f' in regime {self.regime!r}' if self.regime else ''}, seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """Arms, seeds and regimes.

    Args:
        configs: the files that all runs share.
        arms: what each arm changes: option to value.
        seeds: the seeds, each at least 0.
        baseline: the arm that the others are compared with, which alone may change nothing.
        regimes: what each regime changes, for all arms; an arm wins over it.

    Raises:
        ValueError: if there is no arm or no seed; if a seed is repeated; if a name cannot name a folder; if
            an arm other than the baseline changes nothing; if an option is one that the study sets, or its
            value is none that a command line can give.
        FileNotFoundError: if a config is missing.

    Example:
        >>> study = Study.load("study.yaml")                 # doctest: +SKIP
        >>> [str(run) for run in study.runs()][0]            # doctest: +SKIP
        "arm 'no noise', seed 0"
    """

    configs: Sequence[Path]
    arms: Mapping[str, Overrides]
    seeds: Sequence[int]
    baseline: str | None = None
    regimes: Mapping[str, Overrides] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("the study has no arms")
        if not self.seeds:
            raise ValueError("the study has no seeds")
        if repeated := sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1}):
            raise ValueError(f"the seeds {repeated} are given twice")
        if self.baseline is not None:
            check_names([self.baseline], self.arms, "baseline")
        for path in self.configs:
            if not path.is_file():
                raise FileNotFoundError(f"the study's config {path} does not exist")
        for kind, parts in (("arm", self.arms), ("regime", self.regimes)):
            _check_folders(kind, parts)
            for name, overrides in parts.items():
                _check_overrides(f"{kind} {name!r}", overrides)
                if not overrides and name != self.baseline and kind == "arm":
                    raise ValueError(
                        f"arm {name!r} changes nothing: give it an option, or make it the baseline"
                    )

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read a study from a YAML file; its configs are relative to that file.

        Raises:
            ValueError: if the file is not a study; the message names the file.
            FileNotFoundError: if the file or a config is missing.
        """
        path = Path(path).expanduser()
        try:
            given = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
            if not isinstance(given, dict):
                raise ValueError("expected a mapping with `config`, `arms` and `seeds`")
            check_names(given, _KEYS, "key")
            if missing := [key for key in _REQUIRED if given.get(key) is None]:
                raise ValueError(f"`{missing[0]}` is missing")
            configs = given["config"] if isinstance(given["config"], list) else [given["config"]]
            return cls(
                [path.parent / str(config) for config in configs],
                _mapping("arms", given["arms"]),
                parse_seeds(given["seeds"]),
                None if given.get("baseline") is None else str(given["baseline"]),
                _mapping("regimes", given.get("regimes") or {}),
            )
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"the study {path}: {error}") from error

    def runs(self) -> Iterator[Run]:
        """All runs, seed by seed: a study that is stopped early has whole seeds."""
        for seed in self.seeds:
            for regime, around in (self.regimes or {"": {}}).items():
                for arm, changes in self.arms.items():
                    yield Run(
                        regime, arm, seed, [*self.options({**around, **changes}), f"--seed_everything={seed}"]
                    )

    def options(self, overrides: Overrides) -> list[str]:
        """The command line of ``fanoise fit`` for the study's configs and these overrides."""
        files = [f"--config={path.resolve()}" for path in self.configs]
        return [*files, *(f"--{name}={_as_yaml(value)}" for name, value in overrides.items())]


def parse_seeds(value: Any) -> list[int]:
    """Seeds from ``7``, ``[0, 1, 2]`` or a text such as ``"0-3, 8"``.

    Raises:
        ValueError: for anything else.

    Example:
        >>> parse_seeds("0-3, 8")
        [0, 1, 2, 3, 8]
    """
    parts = value if isinstance(value, list) else str(value).split(",")
    seeds: list[int] = []
    for part in parts:
        found = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", str(part))
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last or last - first >= 10_000:
            raise ValueError(f"`seeds` must be numbers or ranges such as 0-11, got {part!r}")
        seeds += range(first, last + 1)
    return seeds


def _as_yaml(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return re.sub(r"(inf|nan)", r".\1", str(value))  # as YAML writes them, unlike JSON
    return json.dumps(value) if not isinstance(value, str) else value


def _mapping(name: str, value: Any) -> dict[str, Overrides]:
    if not isinstance(value, dict):
        raise ValueError(f"`{name}` must map names to options, got {value!r}")
    found: dict[str, Overrides] = {}
    for key, options in value.items():
        if key is None or isinstance(key, bool):
            raise ValueError(
                f"`{name}`: YAML reads a name as {key}: put it in quotes, such as 'no' or 'null'"
            )
        if not isinstance(options, dict | None):
            raise ValueError(
                f"`{name}`, {key!r}: expected options such as {{noise.alpha: 0.5}}, got {options!r}"
            )
        found[str(key)] = {str(option): setting for option, setting in (options or {}).items()}
    return found


def _check_folders(kind: str, names: Mapping[str, Any]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not _NAME.fullmatch(name) or name[-1] in ". ":
            raise ValueError(
                f"the {kind} {name!r} cannot name a folder: use letters, digits, spaces and . , + = _ -, "
                "and begin with a letter or digit"
            )
        if (size := len(name.encode())) > _LONGEST:
            raise ValueError(
                f"the {kind} {name!r} is of {size} bytes, and a folder's name of {_LONGEST} at most"
            )
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise ValueError(
                f"the {kind}s {other!r} and {name!r} differ in case alone, which some disks ignore"
            )


def _check_overrides(owner: str, overrides: Overrides) -> None:
    for option, value in overrides.items():
        if any(option == ours or option.startswith(f"{ours}.") for ours in _OURS):
            raise ValueError(f"{owner} sets `{option}`, which the study sets for each run")
        if not re.fullmatch(r"[A-Za-z_][\w.+]*", option):
            raise ValueError(f"{owner}: {option!r} is not an option of `fanoise fit`, such as noise.alpha")
        try:
            _as_yaml(value)
        except (TypeError, ValueError, RecursionError) as error:  # a date, a set, a mapping within itself
            raise ValueError(
                f"{owner}: `{option}` is {value!r}; expected a number, a text, a list or a mapping: put "
                "dates in quotes"
            ) from error
        if isinstance(value, dict):
            _check_overrides(owner, {f"{option}.{key}": part for key, part in value.items()})


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a repeated key is an error, and not a lost arm."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        merged = "tag:yaml.org,2002:merge"
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merged]
        if repeated := [key for key in keys if keys.count(key) > 1]:  # 0.1 and 0.10 too
            raise ValueError(f"line {node.start_mark.line + 1}: the key {repeated[0]!r} is given twice")
        return super().construct_mapping(node, deep)
