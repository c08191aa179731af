"""The noise that arms were trained with, from the configuration that each run keeps in its folder.

The plan of a run has only what its arm changes, and its scores have no options at all. ``config.yaml``,
which the command line writes into the folder of every run, has all of them, defaults included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fanoise_lightning.study.records import Record

__all__ = ["NoiseLines", "noise_lines", "read_options"]

CONFIG = "config.yaml"
# not part of what is trained
_ASIDE = ("seed_everything", "noise", "scoreboard", "spectrum", "allow", "ckpt_path", "weights_only")
_ASIDE_OF_TRAINER = ("logger", "default_root_dir", "enable_progress_bar", "enable_model_summary")


@dataclass(frozen=True)
class Options:
    """The options of a run.

    Args:
        alpha: the noise level.
        noise: the other options of the noise, without its seed.
        rest: all else that the training depends on, as one text.
    """

    alpha: float
    noise: Mapping[str, Any]
    rest: str


@dataclass(frozen=True)
class NoiseLines:
    """Arms that differ in their noise alone.

    Args:
        lines: the scaling law, with other options of the noise if they differ, to alpha to an arm. Alpha
            0 is the same arm in every line, if there is one.
        left_out: why other arms are not among them, a sentence each.
    """

    lines: Mapping[str, Mapping[float, str]]
    left_out: Sequence[str]


def read_options(folder: Path) -> Options:
    """Read the options of the run in a folder.

    Raises:
        ValueError: if the folder has no configuration of ``fanoise fit``, or alpha is a schedule.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG}, which `fanoise fit` writes: its alpha is unknown")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        noise = dict(config["noise"])
        alpha, _ = noise.pop("alpha"), noise.pop("seed", None)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a configuration of `fanoise fit`: {error!r}") from error
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ValueError(f"{path}: alpha is a schedule, not a number")
    rest = {key: value for key, value in config.items() if key not in _ASIDE}
    trainer = dict(rest.get("trainer") or {})
    rest["trainer"] = {key: value for key, value in trainer.items() if key not in _ASIDE_OF_TRAINER}
    return Options(float(alpha), noise, json.dumps(rest, sort_keys=True, default=str))


def noise_lines(records: Sequence[Record]) -> NoiseLines:
    """Sort the arms of a study by law and alpha.

    Only arms that differ in nothing but their noise can be on one curve. If there are several groups of
    such arms, such as regimes, the largest counts.

    Example:
        >>> from fanoise_lightning.study.records import read_runs            # doctest: +SKIP
        >>> noise_lines(read_runs(["runs"])[0]).lines                        # doctest: +SKIP
        {'sublinear': {0.0: 'none', 0.1: 'sublinear 0.1'}}
    """
    left_out: list[str] = []
    groups: dict[str, dict[str, Options]] = {}
    for arm, options in _options(records, left_out).items():
        groups.setdefault(options.rest, {})[arm] = options
    if not groups:
        return NoiseLines({}, left_out)
    arms = max(groups.values(), key=len)
    for arm in (arm for group in groups.values() if group is not arms for arm in group):
        first = next(iter(arms))
        left_out.append(f"arm {arm!r} differs in more than its noise from {first!r} and others")
    clean = [arm for arm, options in arms.items() if options.alpha == 0]
    left_out += [f"arm {arm!r} has alpha 0, like {clean[0]!r}" for arm in clean[1:]]
    noisy = {arm: options for arm, options in arms.items() if options.alpha}
    differing = _differing([options.noise for options in noisy.values()])
    lines: dict[str, dict[float, str]] = {}
    for arm, options in noisy.items():
        parts = [_named(key, options.noise.get(key)) for key in differing]
        line = lines.setdefault(", ".join([str(options.noise.get("scaling")), *parts]), {})
        if (known := line.setdefault(options.alpha, arm)) != arm:
            left_out.append(f"arm {arm!r} has the noise of {known!r}")
    return NoiseLines({name: _with_zero(line, clean) for name, line in sorted(lines.items())}, left_out)


def _options(records: Sequence[Record], left_out: list[str]) -> dict[str, Options]:
    """The options of each arm whose runs agree."""
    found: dict[str, Options] = {}
    refused: set[str] = set()
    for record in records:
        if record.arm in refused:
            continue
        try:
            options = read_options(record.folder)
        except ValueError as error:
            why = str(error)
        else:
            if found.setdefault(record.arm, options) == options:
                continue
            why = f"runs of arm {record.arm!r} have different options, such as {record.folder}"
        refused.add(record.arm)
        left_out.append(why)
    return {arm: options for arm, options in found.items() if arm not in refused}


def _differing(noises: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options that the noises differ in, other than the law."""
    keys = dict.fromkeys(key for noise in noises for key in noise if key != "scaling")
    values = {key: {json.dumps(noise.get(key), default=str) for noise in noises} for key in keys}
    return [key for key in keys if len(values[key]) > 1]


def _named(key: str, value: Any) -> str:
    return f"{key} {'+'.join(map(str, value)) if isinstance(value, list) else value}"


def _with_zero(line: Mapping[float, str], clean: Sequence[str]) -> dict[float, str]:
    return dict(sorted({**line, **({0.0: clean[0]} if clean else {})}.items()))
