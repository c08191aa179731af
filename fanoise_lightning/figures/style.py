"""What all figures share: colours and plain axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LAW_COLOURS", "SIDE_COLOURS", "colours", "legend_below", "tidy"]

# Okabe and Ito: distinct for the colour-blind.
LAW_COLOURS = {"uniform": "#0072B2", "linear": "#D55E00", "sublinear": "#009E73"}
SIDE_COLOURS = {"query": "#0072B2", "target": "#D55E00"}
_OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")


def colours(names: list[str]) -> dict[str, str]:
    """A colour for each name: a law keeps its own wherever it is drawn.

    Args:
        names: laws, or names that begin with one and a comma. The first of a law gets its colour; all
            others share the rest, in order.

    Example:
        >>> colours(["sublinear", "sublinear, input"])
        {'sublinear': '#009E73', 'sublinear, input': '#CC79A7'}
    """
    found: dict[str, str] = {}
    others = 0
    for name in names:
        own = LAW_COLOURS.get(name.split(",")[0])
        if own is None or own in found.values():
            own, others = _OTHERS[others % len(_OTHERS)], others + 1
        found[name] = own
    return found


def legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend under all panels, in as many columns as its labels leave room for."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = int(14 * figure.get_figwidth() / (longest + 8))  # letters an inch, and the handle's width
    style: dict[str, Any] = {"ncols": max(1, min(len(handles), columns)), "frameon": False, "fontsize": 9}
    figure.legend(handles=handles, loc="outside lower center", **style)


def tidy(ax: Axes) -> None:
    """A light grid behind the data, and no box around it."""
    ax.grid(which="major", color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
