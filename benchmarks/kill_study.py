"""Studies that are killed and started again, against one that is not: are the results the same, bit for bit?

    python benchmarks/kill_study.py [--kills 10] [--seed 0]

A study of four arms and five seeds on a tiny encoder, two runs at a time. SIGKILL comes at random moments, in
turn to the study alone, whose runs then outlive it, and to the study and all that it has started. After the
last kill the study is left to end, and its results are compared with those of an unbroken one: the scores of
every subset, what each query scored, and the spectra in training.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from kill import command

RESULTS = ("scores.json", "outcomes.json", "spectrum.json")
OURS = (
    "--ckpt_path",
    "--config",
    "--trainer.logger",
    "--trainer.default_root_dir",
    "--scoreboard.path",
    "--trainer.callbacks",
)


def study_file(folder: Path) -> Path:
    """The study: noise at two places and at two levels."""
    options = dict(option.removeprefix("--").split("=", 1) for option in command(folder / "x")[1:])
    config = options.pop("config")
    kept = {name: value for name, value in options.items() if not f"--{name}".startswith(OURS)}
    image = {"noise.target": "encoder.clip.visual", "noise.where": "output", "noise.relative": True}
    arms = {
        "none": {"noise.alpha": 0},
        "loss": {"noise.alpha": 0.3},
        "averaged": {"noise.alpha": 0.3, "noise.momentum": 0.9},
        "image": {"noise.alpha": 0.3, **image},
    }
    base = {"trainer.max_steps": 12, "trainer.val_check_interval": 12, "trainer.callbacks": []}
    study = {
        "config": config,
        "seeds": "0-4",
        "baseline": "none",
        "arms": arms,
        "regimes": {"r": {**kept, **base}},
    }
    path = folder / "study.json"  # which is YAML too
    path.write_text(json.dumps(study))
    return path


def start(study: Path, folder: Path, mark: str) -> subprocess.Popen[bytes]:
    """The one command, for every start."""
    arguments = ["study", str(study), f"--folder={folder}", "--workers=2"]
    return subprocess.Popen(
        [sys.executable, "-m", "fanoise_lightning", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "FANOISE_KILL": mark},
    )


def family(mark: str) -> Iterator[int]:
    """The processes that a study has started, by the mark in their environment."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"FANOISE_KILL={mark}".encode() in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)


def results(folder: Path) -> dict[str, Any]:
    """What a study found, without how fast it was."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*.json") if path.name in RESULTS):
        value = json.loads(file.read_text())
        if file.name == "scores.json":
            del value["metrics"]["train/pairs_per_second"]
        found[str(file.relative_to(folder))] = value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study, killed = study_file(folder), folder / "killed"
        begin = time.monotonic()
        if start(study, folder / "unbroken", "unbroken").wait():
            raise SystemExit("the unbroken study failed")
        whole = time.monotonic() - begin
        expected = results(folder / "unbroken")
        in_flight = 0
        for kill in range(given.kills):
            process = start(study, killed, mark := f"{os.getpid()}-{kill}")
            time.sleep(rng.uniform(0.1, 0.25) * whole)
            victims = [process.pid] if kill % 2 else [process.pid, *family(mark)]
            for victim in victims:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            process.wait()
            plans = list(killed.rglob("run.json"))
            done = [plan for plan in plans if (plan.parent / "finished.json").exists()]
            in_flight += len(done) < len(plans)
            print(
                f"kill {kill + 1}: {'study' if kill % 2 else 'all'}, {len(done)} of 20 runs are finished",
                flush=True,
            )
        if start(study, killed, "last").wait():
            raise SystemExit("the study failed after the kills")
        same = results(killed) == expected
        print(f"{given.kills} kills, {in_flight} before the end; {len(expected)} result files: ", end="")
        print("the same, bit for bit" if same else "NOT the same")
        raise SystemExit(not same)


if __name__ == "__main__":
    main()
