"""What a comparison says: a verdict in words, Markdown, JSON, and the rows of a forest plot."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from fanoise_lightning.study.comparison import ArmEffects, Comparison
from fanoise_lightning.study.effects import Effect, Interval

__all__ = ["as_dict", "forest_rows", "markdown", "notes", "table", "verdict"]


def verdict(comparison: Comparison, arm: ArmEffects) -> str:
    """One sentence on an arm, which claims no more than its intervals."""
    found, by = arm.means[comparison.by], comparison.by
    if arm.alike:
        return "every outcome equals the baseline's: is it the same training?"
    if found.seeds is None and len(found.per_seed) > 1:
        return f"{_points(found.difference)} on {by} in every seed: too few seeds to know their spread"
    if found.seeds is None:
        return f"a single seed: {_points(found.difference)} on {by}, no word about other seeds"
    for sign, word in ((1, "gains"), (-1, "costs")):
        seeds, queries = (sorted((sign * a, sign * b)) for a, b in (found.seeds, found.queries))
        if seeds[0] > 0:
            what = f"{word} {100 * seeds[0]:.1f} to {100 * seeds[1]:.1f} points on {by}"
            return what if queries[0] > 0 else f"{what}, with these queries; with others it may not"
    seen = "" if found.detectable is None else f"; one of {100 * found.detectable:.1f} points would have been"
    return f"no difference seen on {by}{seen}"


def markdown(comparison: Comparison) -> str:
    """The comparison as Markdown, in points of precision@1."""
    c = comparison
    level = f"{100 * c.confidence:.3g} %"
    lines = [
        f"# Against {c.baseline!r}",
        "",
        f"Differences in points of precision@1, with {level} intervals for other seeds: those of all "
        f"{len(c.arms)} arms hold together with 95 %. *Detectable* is the smallest true difference that "
        "would be seen four times out of five.",
    ]
    if c.selected_on:
        lines += ["", f"Baseline and arm were chosen on the seeds {_list(c.selected_on)}, by {c.by}."]
    lines += [f"\n{note}" for note in notes(c)]
    means = [name for name in dict.fromkeys([c.by, "OOD", "IND", "overall"]) if name in c.scores]
    lines += ["", _row("arm", "seeds", *means, "p (Holm)", "detectable", "verdict")]
    lines += [_row(*["---"] * (len(means) + 5))]
    for arm in c.arms:
        decisive = arm.means[c.by]
        p = "-" if arm.p_value is None else f"{arm.p_value:.2g}"
        least = "-" if decisive.detectable is None else f"{100 * decisive.detectable:.1f}"
        cells = [_cell(arm.means[name]) for name in means]
        lines.append(_row(arm.arm, str(len(arm.seeds)), *cells, p, least, verdict(c, arm)))
    baseline = [f"{100 * c.scores[name]:.1f}" for name in means]
    lines.append(_row(f"*{c.baseline}*", "", *baseline, "", "", "*the baseline's scores*"))
    rest = [name for name in c.scores if name not in means]
    for names, of in ((rest, "means"), (list(c.arms[0].subsets), "subsets")):
        lines += ["", _row("arm", *names), _row(*["---"] * (len(names) + 1))]
        lines += [_row(arm.arm, *(_cell(getattr(arm, of)[name]) for name in names)) for arm in c.arms]
    return "\n".join(lines) + "\n"


def table(comparison: Comparison) -> Table:
    """The mean that decides, for a terminal."""
    c = comparison
    score = f"{100 * c.scores[c.by]:.1f}"
    found = Table(
        title=f"{c.by} against {c.baseline!r}, which scores {score}", box=SIMPLE, title_justify="left"
    )
    found.add_column("arm")
    found.add_column("points", justify="right", no_wrap=True)
    found.add_column(f"{100 * c.confidence:.3g} % for other seeds", no_wrap=True)
    found.add_column("verdict")
    for arm in c.arms:
        difference, _, interval = _cell(arm.means[c.by]).partition(" ")
        found.add_row(*map(escape, (arm.arm, difference, interval.strip("()"), verdict(c, arm))))
    return found


def notes(comparison: Comparison) -> list[str]:
    """What is not part of the comparison."""
    found = [f"Failed and not part of it: {failed.folder}: {failed.error}" for failed in comparison.failures]
    return found + [
        f"{arm.arm}: {arm.skipped} outcomes are not compared: one of the runs skipped the query."
        for arm in comparison.arms
        if arm.skipped
    ]


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values, in fractions, with the verdicts."""
    values = asdict(comparison)
    for arm, known in zip(values["arms"], comparison.arms):
        arm["verdict"] = verdict(comparison, known)
    for failure in values["failures"]:
        failure["folder"] = str(failure["folder"])
    return _plain(values)


def forest_rows(comparison: Comparison) -> list[tuple[str, float, Interval, Interval | None]]:
    """For each arm: its name, the difference that decides, and its intervals for other queries and seeds."""
    effects = [(arm.arm, arm.means[comparison.by]) for arm in comparison.arms]
    return [(name, found.difference, found.queries, found.seeds) for name, found in effects]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(found: Effect) -> str:
    if found.seeds is None:
        return _points(found.difference)
    low, high = found.seeds
    return f"{_points(found.difference)} ({_points(low)} to {_points(high)})"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"


def _list(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
