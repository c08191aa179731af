"""Scores against the amount of noise, one line for each scaling law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy
from scipy import stats

from fanoise_lightning.figures.style import colours, legend_below, tidy

__all__ = ["alpha_curves"]

CONFIDENCE = 0.95
_POINTS_APART = 3  # between the lines at one alpha, on paper

Curves = Mapping[str, Mapping[float, Sequence[float]]]


def alpha_curves(scores: Mapping[str, Curves]) -> tuple[Figure, dict[str, Any]]:
    """Draw scores against alpha, with 95 % t intervals for other seeds.

    The interval is that of a score by itself. Arms of a study share their seeds, so a difference may be
    certain though the intervals overlap: that is for ``fanoise compare`` to say.

    Args:
        scores: mean, such as ``"OOD"``, to line, such as a law, to alpha to the scores (S,) of S seeds,
            in fractions. An alpha of 0 belongs in every line.

    Returns:
        The figure, with one panel for each mean, and its numbers: mean to line to a list of alpha,
        number of seeds, score and interval (``None`` for one seed), in points.

    Raises:
        ValueError: if there are no scores.

    Example:
        >>> _, numbers = alpha_curves({"OOD": {"sublinear": {0.0: [0.25, 0.25], 0.1: [0.5]}}})
        >>> numbers["OOD"]["sublinear"][1]
        {'alpha': 0.1, 'seeds': 1, 'score': 50.0, 'interval': None}
    """
    lines = [line for curves in scores.values() for line in curves.values()]
    if not any(values for line in lines for values in line.values()):
        raise ValueError("there are no scores to draw")
    numbers: dict[str, Any] = {
        mean: {
            line: [_point(alpha, by_alpha[alpha]) for alpha in sorted(by_alpha)]
            for line, by_alpha in curves.items()
        }
        for mean, curves in scores.items()
    }
    figure = Figure(figsize=(4.2 * len(numbers) + 0.4, 3.8), layout="constrained", dpi=110)
    panels = figure.subplots(1, len(numbers), squeeze=False)[0]
    for ax, (mean, lines) in zip(panels, numbers.items()):
        _draw(ax, figure, mean, lines)
    panels[0].set_ylabel("precision@1, %")
    legend_below(figure, panels[0].get_legend_handles_labels()[0])
    return figure, numbers


def _point(alpha: float, scores: Sequence[float]) -> dict[str, Any]:
    points = 100 * np.asarray(scores, dtype=np.float64)
    interval = None
    if len(points) > 1:
        half = stats.t.ppf((1 + CONFIDENCE) / 2, len(points) - 1) * stats.sem(points)
        interval = [float(points.mean() - half), float(points.mean() + half)]
    return {
        "alpha": float(alpha), "seeds": len(points), "score": float(points.mean()), "interval": interval
    }  # fmt: skip


def _draw(ax: Axes, figure: Figure, mean: str, lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    ticks = sorted({point["alpha"] for points in lines.values() for point in points})
    least = min((alpha for alpha in ticks if alpha > 0), default=1.0)
    ax.set_xscale("symlog", linthresh=least, linscale=0.5)
    ax.set_xticks(ticks, [f"{alpha:g}" for alpha in ticks])
    ax.minorticks_off()
    for place, (line, colour) in enumerate(colours([*lines]).items()):
        aside = _POINTS_APART * (place - (len(lines) - 1) / 2)
        beside = offset_copy(ax.transData, fig=figure, x=aside, units="points")
        alphas = [point["alpha"] for point in lines[line]]
        scores = [point["score"] for point in lines[line]]
        halves = [0.0 if p["interval"] is None else p["interval"][1] - p["score"] for p in lines[line]]
        style: dict[str, Any] = {
            "fmt": "o-",
            "color": colour,
            "lw": 1.4,
            "markersize": 4,
            "capsize": 2,
            "elinewidth": 1,
        }
        ax.errorbar(alphas, scores, halves, transform=beside, label=line, **style)
        # matplotlib does not make room for what is drawn aside
        ax.update_datalim([(alpha, score + sign * half) for alpha, score, half in
                           zip(alphas, scores, halves) for sign in (-1, 1)])  # fmt: skip
    ax.autoscale_view()
    ax.set_xlabel("alpha")
    seeds = sorted({point["seeds"] for points in lines.values() for point in points})
    ax.set_title(f"{mean}: {_seeds(seeds)}", fontsize=10)
    tidy(ax)


def _seeds(counts: Sequence[int]) -> str:
    if counts[-1] == 1:
        return "one seed, no interval"
    return f"mean of {'-'.join(str(count) for count in sorted({counts[0], counts[-1]}))} seeds, 95 %"
