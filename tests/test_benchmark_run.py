"""``benchmarks/run.py`` on benchmarks of a line each."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import Figure
from benchmarks.run import Outcome, compare

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MEASURES = """
import argparse
from figures import Figure, add_options, write
parser = argparse.ArgumentParser()
parser.add_argument("--slow", action="store_true")
add_options(parser)
options = parser.parse_args()
ratio = 0.8 if options.slow else 1.0
write([
    Figure("speed", ratio, "x", ratio - 0.1, 1.5, at_least=0.9),
    Figure("memory", 3 - 2 * ratio, "MB", at_most=2),
    Figure("rate", 10 * ratio, "rows/s"),
    Figure("a ratio of no direction", ratio, "x"),
], options.json)
"""


def run(folder: Path, scripts: dict[str, str], *arguments: str) -> tuple[int, str, Any]:
    """The exit status, what is printed and what is written."""
    for name, text in scripts.items():
        (folder / f"{name}.py").write_text(text)
    driver = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(BENCHMARKS)!r})
import run
run.HERE, run.BUILD = Path({str(folder)!r}), Path({str(folder / "build")!r})
names = {{"first": "--slow" if "--compare" in sys.argv else "", "second": ""}}
run.BENCHMARKS = {{name: run.Benchmark(f"{{name}}.py", given) for name, given in names.items()}}
sys.exit(run.main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", driver, *arguments]
    environment = {"PYTHONPATH": str(BENCHMARKS), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=100)
    written = folder / "build" / "bench.json"
    return done.returncode, done.stdout + done.stderr, json.loads(written.read_text())


def test_a_missed_target_is_shown_and_is_no_failure(tmp_path: Path) -> None:
    status, told, written = run(tmp_path, {"first": MEASURES.replace("1.0", "0.7"), "second": "print(1)"})
    assert status == 0
    (speed,) = [line.split() for line in told.splitlines() if line.startswith("speed")]
    assert speed == ["speed", "0.7", "x", "0.6", "to", "1.5", "≥", "0.9", "MISS"]
    assert "second ... 0 s no figures" in told
    assert [figure["name"] for figure in written["benchmarks"]["first"]["figures"]][:2] == ["speed", "memory"]
    assert {"torch", "machine", "date", "commit", "cores"} <= set(written)


@pytest.mark.parametrize("broken", ["raise SystemExit('it is broken')", None])
def test_a_benchmark_that_does_not_run_is_a_failure_and_stops_no_other(
    tmp_path: Path, broken: str | None
) -> None:
    scripts = {"second": MEASURES} | ({} if broken is None else {"first": broken})
    status, told, written = run(tmp_path, scripts)
    assert status == 1
    assert ("it is broken" if broken else "No such file") in told
    assert written["benchmarks"]["first"]["failure"]
    assert written["benchmarks"]["second"]["figures"]


def test_only_what_was_named_runs(tmp_path: Path) -> None:
    _, _, written = run(tmp_path, {"first": MEASURES, "second": MEASURES}, "--only", "second")
    assert list(written["benchmarks"]) == ["second"]


def test_compare_lists_what_is_a_tenth_worse(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    _, _, written = run(tmp_path, {"first": MEASURES, "second": MEASURES})
    old.write_text(json.dumps(written))
    status, told, _ = run(tmp_path, {}, "--compare", str(old))
    assert status == 0
    listed = told.partition(str(old))[2].splitlines()[1:]
    assert [line.split() for line in listed] == [
        ["figure", "before", "now", "worse", "by"],
        ["speed", "1", "x", "0.8", "x", "20%"],
        ["memory", "1", "MB", "1.4", "MB", "40%"],
        ["rate", "10", "rows/s", "8", "rows/s", "20%"],
    ]


def test_compare_hides_no_figure_that_is_gone_not_a_number_or_was_zero(tmp_path, capsys) -> None:
    now = [Figure("nan", math.nan, "s"), Figure("zero", 5.0, "%", at_most=1.0), Figure("big", 3.0, "GB")]
    before = [
        Figure("nan", 1.0, "s"),
        Figure("zero", 0.0, "%"),
        Figure("big", 1.0, "GB"),
        Figure("gone", 1.0),
    ]
    benchmarks = {"first": {"figures": [*map(asdict, before)]}, "unasked": {"figures": [asdict(before[0])]}}
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"commit": "", "torch": "", "machine": "", "benchmarks": benchmarks}))
    compare(old, {"first": Outcome(1.0, "", now)})
    listed = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [(line[0], line[-1]) for line in listed] == [
        ("nan", "nan%"),
        ("zero", "inf%"),
        ("big", "200%"),
        ("gone", "missing"),
    ]
