"""What each arm changes from regime to regime: where noise turns from a cost into a gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from fanoise_lightning.figures.style import tidy

__all__ = ["draw_regimes"]

Effects = Mapping[str, tuple[float, tuple[float, float] | None]]  # regime to difference and interval

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw_regimes(
    panels: Mapping[str, Mapping[str, Effects]], title: str
) -> tuple[Figure, list[dict[str, Any]]]:
    """Differences to the baseline of each regime, with their intervals.

    Args:
        panels: mean, such as ``"OOD_shared"``, to arm to its differences, in fractions. All arms have the
            same regimes, in order.
        title: what the differences are to.

    Returns:
        The figure, and the numbers in it, in points.

    Raises:
        ValueError: if there is nothing to draw, or arms have different regimes.

    Example:
        >>> effects = {"1 pass": (-0.01, (-0.02, 0.0)), "9 passes": (0.03, (0.02, 0.04))}
        >>> figure, numbers = draw_regimes({"OOD": {"noise": effects}}, "noise less none")
        >>> numbers[1]["difference"]
        3.0
    """
    known = [list(effects) for arms in panels.values() for effects in arms.values()]
    if not known or not known[0]:
        raise ValueError("there are no arms to draw")
    if different := [regimes for regimes in known if regimes != known[0]]:
        raise ValueError(f"the arms have different regimes: {known[0]} and {different[0]}")
    regimes, numbers = known[0], []
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (mean, arms) in zip(axes, panels.items()):
        for place, (arm, effects) in enumerate(arms.items()):
            shift = 0.5 * ((place + 0.5) / len(arms) - 0.5)
            xs = [number + shift for number in range(len(regimes))]
            ys = [100 * difference for difference, _ in effects.values()]
            colour = _COLOURS[place % len(_COLOURS)]
            ax.plot(xs, ys, "o-", color=colour, lw=1, ms=4, label=arm)
            for x, (regime, (difference, interval)) in zip(xs, effects.items()):
                points = None if interval is None else [100 * limit for limit in interval]
                if points is not None:
                    ax.plot([x, x], points, color=colour, lw=2.2, alpha=0.5, solid_capstyle="butt")
                found = {"mean": mean, "arm": arm, "regime": regime}
                numbers.append({**found, "difference": 100 * difference, "interval": points})
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xticks(range(len(regimes)), regimes)
        ax.set_title(mean, fontsize=10)
        tidy(ax)
    axes[0].set_ylabel("points of precision@1")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure, numbers
