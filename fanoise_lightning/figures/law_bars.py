"""Scaling laws side by side: each one's difference to a baseline, by mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fanoise_lightning.figures.style import colours, legend_below, tidy

__all__ = ["law_bars"]

Interval = tuple[float, float]
Difference = tuple[float, Interval | None]


def law_bars(laws: Mapping[str, Mapping[str, Difference]], title: str) -> tuple[Figure, dict[str, Any]]:
    """Draw the difference of each law to a baseline, for each mean.

    A bar is filled if its interval excludes 0.

    Args:
        laws: law to mean, such as ``"IND"``, to the difference and its interval for other seeds
            (``None`` for one seed), in fractions. All laws have the same means.
        title: what is compared with what.

    Returns:
        The figure, and its numbers: law to mean to difference and interval, in points.

    Raises:
        ValueError: if there is no law, or the laws have different means.

    Example:
        >>> _, numbers = law_bars({"sublinear": {"OOD": (0.02, (0.01, 0.03))}}, "against no noise")
        >>> numbers["sublinear"]["OOD"]
        {'difference': 2.0, 'interval': [1.0, 3.0]}
    """
    if not laws:
        raise ValueError("there are no laws to draw")
    means = list(next(iter(laws.values())))
    for law, differences in laws.items():
        if set(differences) != set(means):
            raise ValueError(f"{law!r} has the means {sorted(differences)}, expected {sorted(means)}")
    numbers = {law: {mean: _in_points(*known[mean]) for mean in means} for law, known in laws.items()}
    size = max(5.0, 1.6 + 0.28 * len(means) * (len(laws) + 1))
    figure = Figure(figsize=(size, 3.8), layout="constrained", dpi=110)
    ax = figure.subplots()
    width = 0.8 / len(laws)
    for number, (law, colour) in enumerate(colours([*laws]).items()):
        for place, mean in enumerate(means):
            found = numbers[law][mean]
            x = place + width * (number - (len(laws) - 1) / 2)
            certain = found["interval"] is not None and found["interval"][0] * found["interval"][1] > 0
            fill = colour if certain else "white"
            ax.bar(x, found["difference"], 0.9 * width, color=fill, edgecolor=colour, lw=1.2)
            if found["interval"] is not None:
                ax.plot([x, x], found["interval"], color="#333333", lw=1)
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xticks(range(len(means)), means)
    ax.set_ylabel("points of precision@1")
    ax.set_title(f"{title}; filled: excludes 0", fontsize=10, wrap=True)
    tidy(ax)
    ax.grid(visible=False, axis="x")
    patches = [Patch(facecolor=colour, label=law) for law, colour in colours([*laws]).items()]
    legend_below(figure, patches)
    return figure, numbers


def _in_points(difference: float, interval: Interval | None) -> dict[str, Any]:
    limits = None if interval is None else [100 * limit for limit in interval]
    return {"difference": 100 * difference, "interval": limits}
