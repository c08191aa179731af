"""Run the benchmarks, and print what they measured in one table.

    python benchmarks/run.py [--only NAME ...] [--compare OLD.json]

Each runs in a process of its own, one after the other. The table has each figure's median, its range over the
rounds, the target and whether it is reached. `build/bench.json` holds the same with the versions and the
machine, `build/bench/` what each benchmark printed. The exit status is 1 if a benchmark failed to run; a
target that is missed is no failure. `--compare` lists the figures that are missing or more than 10 % worse
than in an earlier `bench.json`, of the same machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[1]
BUILD = ROOT / "build"
TIMEOUT, WORSE = 900, 0.1
LESS_IS_BETTER = ("s", "ms", "MB", "GB", "GiB")


@dataclass(frozen=True)
class Benchmark:
    """A script beside this one, its arguments, and its threads; 0 leaves them to torch."""

    script: str
    arguments: str = ""
    threads: int = 1


# truncation.py, kill_embed.py and kill_study.py take longer, and are run by hand; growth.py runs traffic.py
BENCHMARKS = {
    "noise": Benchmark("noise.py", threads=0),
    "noise_accuracy": Benchmark("noise_accuracy.py", threads=0),
    "theory": Benchmark("theory.py"),
    "import_time": Benchmark("import_time.py"),
    "overhead": Benchmark("overhead.py", threads=0),
    "overhead_heads": Benchmark("overhead.py", "--heads --steps 200"),
    "encoders": Benchmark("encoders.py"),
    "data": Benchmark("data.py"),
    "pairs": Benchmark("pairs.py"),
    "scoring": Benchmark("scoring.py"),
    "peers": Benchmark("peers.py", "--rounds 5 --steps 12"),
    "peers_small": Benchmark("peers.py", "--size small --rounds 3 --steps 3 --workers 1"),
    "large_batch": Benchmark("large_batch.py"),
    "tiled_loss": Benchmark("tiled_loss.py", threads=0),
    "encode": Benchmark("encode.py", "--rows 2000 --rounds 5"),
    "embed": Benchmark("embed.py", "--rows 1000 10000"),
    "growth": Benchmark("growth.py"),
    "search": Benchmark("search.py", threads=0),
    "search_kinds": Benchmark("search.py", "--kinds", threads=0),
    "kill": Benchmark("kill.py"),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a benchmark: its figures, or why it failed."""

    seconds: float
    failure: str = ""
    figures: list[Figure] = field(default_factory=list)


def run(name: str, benchmark: Benchmark) -> Outcome:
    log = BUILD / "bench" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if benchmark.threads:
        environment["OMP_NUM_THREADS"] = str(benchmark.threads)
    with tempfile.TemporaryDirectory() as folder, log.open("w") as output:
        script, figures = HERE / benchmark.script, Path(folder, "figures.json")
        command = [sys.executable, str(script), *benchmark.arguments.split()]
        if script.exists() and "add_options(" in script.read_text():
            command.append(f"--json={figures}")
        start = time.perf_counter()
        try:
            subprocess.run(
                command, check=True, cwd=ROOT, env=environment, timeout=TIMEOUT, stdout=output, stderr=output
            )
            failure = ""
        except subprocess.SubprocessError as error:
            failure = f"{error}"
        seconds = time.perf_counter() - start
        found = json.loads(figures.read_text()) if figures.exists() else []
    return Outcome(seconds, failure, [Figure(**figure) for figure in found])


def rows_of(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    rows = [("figure", "value", "range", "target", "")]
    for figure in figures:
        spread = "" if figure.low is None or figure.high is None else f"{figure.low:.3g} to {figure.high:.3g}"
        bounds = (("≥", figure.at_least), ("≤", figure.at_most))
        target = ", ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        verdict = {True: "pass", False: "MISS", None: ""}[figure.reached]
        rows.append((figure.name, f"{figure.value:.3g} {figure.unit}".strip(), spread, target, verdict))
    return rows


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def circumstances() -> dict[str, Any]:
    """Where and when this runs, and what is measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "torch": version("torch"),
        "python": platform.python_version(),
        "machine": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # not in a checkout, or without git
        return None


def processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def change_for_worse(before: Figure, now: Figure) -> float | None:
    """The share by which a figure is worse than before, below 0 if it is better; ``None`` if unknown."""
    change = now.value / before.value - 1 if before.value else math.inf if now.value else 0.0
    if now.at_least is not None or now.unit.endswith("/s"):
        return -change
    return change if now.at_most is not None or now.unit in LESS_IS_BETTER else None


def compare(old: Path, outcomes: dict[str, Outcome]) -> None:
    earlier = json.loads(old.read_text())
    rows = [("figure", "before", "now", "worse by")]
    for name, outcome in outcomes.items():
        found = {figure.name: figure for figure in outcome.figures}
        for figure in earlier["benchmarks"].get(name, {"figures": []})["figures"]:
            before, now = Figure(**figure), found.get(figure["name"])
            value = f"{before.value:.3g} {before.unit}"
            if now is None:
                rows.append((before.name, value, "-", "missing"))
                continue
            worse = change_for_worse(before, now)
            if worse is not None and not worse <= WORSE:  # NaN, too
                rows.append((before.name, value, f"{now.value:.3g} {now.unit}", f"{worse:.0%}"))
    print(f"\n{old}: {earlier['commit']}, torch {earlier['torch']}, {earlier['machine']}")
    print_table(rows) if len(rows) > 1 else print("nothing is missing or more than 10 % worse")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--compare", type=Path, metavar="OLD.json")
    options = parser.parse_args(arguments)
    about, outcomes = circumstances(), dict[str, Outcome]()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for name in options.only:
        print(f"{name} ...", end=" ", flush=True)
        outcome = outcomes[name] = run(name, BENCHMARKS[name])
        told = outcome.failure or ("" if outcome.figures else "no figures")
        print(f"{outcome.seconds:.0f} s {told}".rstrip(), flush=True)
        if outcome.failure:
            print((BUILD / "bench" / f"{name}.txt").read_text()[-2000:])
    print()
    figures = [figure for outcome in outcomes.values() for figure in outcome.figures]
    print_table(rows_of(figures))
    aimed = [figure.reached for figure in figures if figure.reached is not None]
    print(f"\n{sum(aimed)} of {len(aimed)} targets are reached")
    found = {name: asdict(BENCHMARKS[name]) | asdict(outcome) for name, outcome in outcomes.items()}
    content = {**about, "benchmarks": found}
    (BUILD / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
    if options.compare:
        compare(options.compare, outcomes)
    return int(any(outcome.failure for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
