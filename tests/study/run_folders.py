"""Run folders as ScoreboardWriter writes them, with outcomes drawn at random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SUBSETS = {
    "plain": ("retrieval", "IND"),
    "odd": ("vqa", "IND"),
    "far": ("retrieval", "OOD"),
}
TASKS = {"plain": "find", "far": "find"}


def outcomes(seed: int, gain: float = 0.0, queries: int = 200) -> dict[str, list[Any]]:
    """Queries of fixed difficulty, won more often with a gain; the same draws for every gain."""
    rng = np.random.default_rng(seed)
    difficulty = np.random.default_rng(99).uniform(0.2, 0.8, (len(SUBSETS), queries))
    draws = rng.uniform(size=difficulty.shape)
    return {name: (draws[i] < difficulty[i] + gain).astype(int).tolist() for i, name in enumerate(SUBSETS)}


def write_run(folder: Path, seed: int, won: dict[str, list[Any]], **run: Any) -> Path:
    """One run; ``run`` overrides the seed, the version and the data."""
    folder.mkdir(parents=True)
    subsets = {
        name: {"meta_task": meta_task, "distribution": distribution, "num_queries": len(won[name])}
        | ({"task": TASKS[name]} if name in TASKS else {})
        for name, (meta_task, distribution) in SUBSETS.items()
        if name in won
    }
    scores = {
        "step": 300,
        "run": {"seed": seed, "version": "1.0", "data": "abc", **run},
        "metrics": {"train/loss": 0.5},
        "scoreboard": {"subsets": subsets},
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "outcomes.json").write_text(json.dumps({"step": 300, "outcomes": won}))
    return folder


def write_study(root: Path, gains: dict[str, float], seeds: range = range(6)) -> Path:
    """Arms with their true gains, each with all seeds."""
    for number, (arm, gain) in enumerate(gains.items()):
        for seed in seeds:
            write_run(root / arm / f"seed-{seed}", seed, outcomes(1000 * number + seed, gain))
    return root


def write_config(folder: Path, noise: dict[str, Any], **others: Any) -> None:
    """The configuration of a run, as the command line writes it, in short."""
    defaults = {"scaling": "sublinear", "energy": "paper", "where": "loss", "sides": ["query"], "seed": None}
    config = {
        "seed_everything": int(folder.name.removeprefix("seed-")),
        "trainer": {"max_steps": 300, "logger": {"init_args": {"save_dir": str(folder)}}},
        "noise": {**defaults, **noise},
        **others,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def write_noise_study(
    root: Path, arms: dict[str, tuple[float, dict[str, Any]]], seeds: range = range(4)
) -> Path:
    """Arms with their true gains and their noise."""
    write_study(root, {arm: gain for arm, (gain, _) in arms.items()}, seeds)
    for arm, (_, noise) in arms.items():
        for seed in seeds:
            write_config(root / arm / f"seed-{seed}", noise)
    return root
