"""Training seen through its features: alignment, uniformity, effective rank, spectra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fanoise_lightning.figures.style import SIDE_COLOURS, tidy
from fanoise_lightning.spectrum import effective_rank

__all__ = ["training_curves"]

Lines = Mapping[str, Sequence[float | None]]

_SHOWN = 6  # spectra in a panel
_TITLES = {
    "alignment": "alignment (lower is better)",
    "uniformity": "uniformity (lower is better)",
    "effective_rank": "effective rank (directions in use)",
}


def training_curves(records: Sequence[Mapping[str, Any]]) -> tuple[Figure, dict[str, Any]]:
    """Draw how the clean features change in training.

    Alignment and uniformity are those of Wang and Isola (ICML 2020); for both, lower is better. Panels
    of what the records do not hold are left out.

    Args:
        records: the ``"spectra"`` in the file of :class:`~fanoise_lightning.callbacks.SpectrumMonitor`.

    Returns:
        The figure, and its numbers: the steps, and for each of them alignment, and uniformity and
        effective rank by side; the spectra that are drawn.

    Raises:
        ValueError: if there is no record.

    Example:
        >>> record = {"step": 0, "sides": {"query": {"batch_size": 2, "dim": 2, "clean": [1.0, 1.0]}}}
        >>> training_curves([record])[1]["effective_rank"]
        {'query': [2.0]}
    """
    if not records:
        raise ValueError("there are no spectra to draw: was a finite batch ever monitored in training?")
    sides = list(dict.fromkeys(side for record in records for side in record["sides"]))
    curves: dict[str, dict[str, list[float | None]]] = {
        "alignment": {"pairs": [record.get("alignment") for record in records]},
        "uniformity": {s: [record.get("uniformity", {}).get(s) for record in records] for s in sides},
        "effective_rank": {s: [_rank(record["sides"].get(s)) for record in records] for s in sides},
    }
    known = {name: lines for name, lines in curves.items() if any(set(y) - {None} for y in lines.values())}
    steps = [int(record["step"]) for record in records]
    width = max(3.4 * len(known), 4.8 * len(sides))
    figure = Figure(figsize=(width, 6.4), layout="constrained", dpi=110)
    figure.suptitle("clean features over training", fontsize=10)
    top, bottom = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for ax, (name, lines) in zip(top.subplots(1, len(known), squeeze=False)[0], known.items()):
        _draw_curves(ax, name, steps, lines)
    shown = _evenly(len(records), _SHOWN)
    spectra: dict[str, list[dict[str, Any]]] = {}
    for ax, side in zip(bottom.subplots(1, len(sides), sharey=True, squeeze=False)[0], sides):
        spectra[side] = [
            {"step": steps[i], "clean": list(records[i]["sides"][side]["clean"])}
            for i in shown
            if side in records[i]["sides"]
        ]
        _draw_spectra(ax, side, spectra[side])
    bottom.axes[0].set_ylabel("singular value")
    alignment = {"alignment": known.pop("alignment")["pairs"]} if "alignment" in known else {}
    return figure, {"steps": steps, **alignment, **known, "spectra": spectra}


def _rank(spectrum: Mapping[str, Any] | None) -> float | None:
    if spectrum is None:
        return None
    rank = effective_rank(torch.tensor(spectrum["clean"], dtype=torch.float64)).item()
    return rank if math.isfinite(rank) else None


def _draw_curves(ax: Axes, name: str, steps: list[int], lines: Lines) -> None:
    for label, values in lines.items():
        line = [math.nan if value is None else value for value in values]
        colour = SIDE_COLOURS.get(label, "#000000")
        ax.plot(steps, line, color=colour, lw=1.5, marker="o", markersize=3, label=label)
    ax.set_title(_TITLES[name], fontsize=10)
    ax.set_xlabel("step")
    tidy(ax)
    if len(lines) > 1:
        ax.legend(frameon=False, fontsize=8)


def _draw_spectra(ax: Axes, side: str, spectra: Sequence[Mapping[str, Any]]) -> None:
    colours = colormaps["viridis"]
    for place, spectrum in enumerate(spectra):
        values = [value or math.nan for value in spectrum["clean"]]  # a logarithmic axis has no 0
        colour = colours(0.9 * place / max(len(spectra) - 1, 1))
        label = f"step {spectrum['step']}"
        ax.semilogy(range(1, len(values) + 1), values, color=colour, lw=1.3, label=label)
    largest = max((spectrum["clean"][0] for spectrum in spectra), default=0.0)
    ax.set_ylim(bottom=max(ax.get_ylim()[0], 1e-4 * largest))  # below it is little but rounding
    ax.set_title(f"{side}: clean spectra", fontsize=10)
    ax.set_xlabel("direction, strongest first")
    tidy(ax)
    ax.legend(frameon=False, fontsize=8)


def _evenly(count: int, most: int) -> list[int]:
    """Up to ``most`` places from the first to the last of ``count``."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]
