"""The figures that a source gives, their numbers, and why others are missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fanoise_lightning.callbacks._files import whole_file, write_json

__all__ = ["NEEDS", "Gallery"]

_STUDY = "needs a study: a folder of runs with scores.json"
_CHECKPOINT = "needs a checkpoint and `--config`, for features"
NEEDS = {
    "alpha_curves": _STUDY,
    "law_bars": _STUDY,
    "noise_spectrum": "needs a spectrum.json, or a checkpoint and `--config`",
    "overlaps": _CHECKPOINT,
    "gradient_bias": _CHECKPOINT,
    "training_curves": "needs a spectrum.json, which SpectrumMonitor writes in training",
}


class Gallery:
    """Collects figures, and reasons for those that there are not.

    Attributes:
        figures: name to figure.
        numbers: name to the data behind the figure.
        missing: name to the reason, for every other figure of ``NEEDS``.
        notes: what a reader of the figures should know.

    Example:
        >>> gallery = Gallery()
        >>> gallery.missing["overlaps"]
        'needs a checkpoint and `--config`, for features'
    """

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}
        self.numbers: dict[str, Any] = {}
        self.missing = dict(NEEDS)
        self.notes: list[str] = []

    def add(self, name: str, draw: Callable[..., tuple[Figure, Any]], *args: Any) -> None:
        """Draw a figure; a ValueError is the reason why it is missing."""
        try:
            self.figures[name], self.numbers[name] = draw(*args)
        except ValueError as error:
            self.missing[name] = str(error)
        else:
            del self.missing[name]

    def write(self, folder: Path) -> None:
        """Write each figure as PNG, and ``figures.json`` with the numbers, reasons and notes."""
        for name, figure in self.figures.items():
            with whole_file(folder / f"{name}.png") as file:
                figure.savefig(file, format="png", dpi=150)
        values = {"figures": self.numbers, "missing": self.missing, "notes": self.notes}
        write_json(folder / "figures.json", values, indent=1)
