"""The tables and the figure of a study with regimes.

    python examples/studies/summarise.py RUNS --selection RUNS_THAT_CHOOSE --output DIR [--fixed REGIME=ARM]

In each regime, the baseline is the best of the arms that match `--baseline`, those without noise, by its
score in the runs that choose, unless `--fixed` names it. The runs that choose have other seeds.
"""

from __future__ import annotations

import argparse
import json
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean

from fanoise_lightning.figures.regimes import draw_regimes
from fanoise_lightning.study.comparison import Comparison, compare, mean_groups, mean_score
from fanoise_lightning.study.records import read_runs
from fanoise_lightning.study.report import markdown


def best(folder: Path, pattern: str, by: str) -> str:
    """The arm with the best mean score in a folder, of those that match."""
    records, _ = read_runs([folder])
    scores: dict[str, list[float]] = {}
    for record in records:
        if fnmatchcase(record.arm, pattern):
            scores.setdefault(record.arm, []).append(mean_score(record, mean_groups(record, by)[by]))
    return max(scores, key=lambda arm: fmean(scores[arm]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--selection", type=Path, required=True)
    parser.add_argument("--baseline", default="none*")
    parser.add_argument("--fixed", action="append", default=[])
    parser.add_argument("--by", default="OOD_shared")
    parser.add_argument("--beside", default="IND_shared")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    fixed = dict(pair.split("=", 1) for pair in given.fixed)
    found: dict[str, Comparison] = {}
    for folder in sorted((path for path in given.runs.iterdir() if path.is_dir()), key=_number):
        baseline = fixed.get(folder.name) or best(given.selection / folder.name, given.baseline, given.by)
        found[folder.name] = compare([folder], baseline, by=given.by)
        (given.output / f"{folder.name}.md").write_text(markdown(found[folder.name]))
    drawn = [arm.arm for arm in next(iter(found.values())).arms]
    shared = [arm for arm in drawn if not fnmatchcase(arm, given.baseline)]
    shared = [arm for arm in shared if all(arm in [a.arm for a in c.arms] for c in found.values())]
    panels = {
        mean: {
            name: {
                regime: next((a.means[mean].difference, a.means[mean].seeds) for a in c.arms if a.arm == name)
                for regime, c in found.items()
            }
            for name in shared
        }
        for mean in (given.by, given.beside)
    }
    seeds = len(next(iter(found.values())).arms[0].seeds)
    figure, numbers = draw_regimes(
        panels, f"less the best arm without noise of each regime; {seeds} seeds, simultaneous 95 % intervals"
    )
    figure.savefig(given.output / "regimes.png", dpi=120)
    baselines = {regime: {"baseline": c.baseline, "scores": dict(c.scores)} for regime, c in found.items()}
    values = {"baselines": baselines, "differences": numbers}
    (given.output / "regimes.json").write_text(json.dumps(values, indent=1) + "\n")


def _number(path: Path) -> int:
    return int("".join(filter(str.isdigit, path.name)) or 0)


if __name__ == "__main__":
    main()
