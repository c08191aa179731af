"""A forest plot: each arm's difference to a baseline, with its intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

__all__ = ["draw_forest"]

Interval = tuple[float, float]


def draw_forest(
    rows: Sequence[tuple[str, float, Interval, Interval | None]], title: str
) -> tuple[Figure, list[dict[str, Any]]]:
    """Draw the differences of arms to a baseline.

    Args:
        rows: name, difference, its interval for other queries, its interval for other seeds (``None`` if
            there is none); in fractions.
        title: what the difference is of.

    Returns:
        The figure, and the numbers in it, in points.

    Raises:
        ValueError: if there are no rows.

    Example:
        >>> figure, numbers = draw_forest([("noise", 0.02, (0.0, 0.04), (0.01, 0.03))], "OOD")
        >>> numbers[0]["difference"]
        2.0
    """
    if not rows:
        raise ValueError("there are no arms to draw")
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    numbers = []
    for place, (name, difference, queries, seeds) in enumerate(rows):
        points = [
            None if limits is None else [100 * limit for limit in limits] for limits in (queries, seeds)
        ]
        colour = "#555555"
        if seeds is not None and queries[0] * queries[1] > 0 and seeds[0] * seeds[1] > 0:
            colour = "#1b7837" if difference > 0 else "#b2182b"
        for limits, width, below in zip(points, (1.2, 4.0), (0.2, 0.0)):
            if limits is not None:
                at = place + below
                axes.plot(limits, [at, at], color=colour, linewidth=width, solid_capstyle="butt")
        axes.plot([100 * difference], [place], "o", color="white", markeredgecolor=colour, markersize=6)
        known = {"name": name, "difference": 100 * difference, "queries": points[0], "seeds": points[1]}
        numbers.append(known)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("points of precision@1; thick: other seeds, thin: other queries")
    figure.suptitle(f"{title}\ncoloured where both intervals exclude 0", fontsize=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure, numbers
