"""What a benchmark measured, beside what it has to reach; ``benchmarks/run.py`` gathers them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Args:
        name: what was measured, and at which size.
        value: the median.
        unit: ``"x"`` for a ratio, ``"%"``, ``"s"``, ``"ms"``, ``"MB"``, ``"rows/s"``.
        low: the least of the rounds, ``high`` the greatest; equal to the value after a single round.
        high: see ``low``.
        at_least: the target, where more is better.
        at_most: the target, where less is better.

    Example:
        >>> Figure("one draw, 256 x 1536, of svd", 0.21, "x", 0.19, 0.24, at_most=0.5).reached
        True
    """

    name: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the value reaches the target; ``None`` without one."""
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


def add_options(parser: argparse.ArgumentParser, *, device: bool = False) -> None:
    """``--json FILE``, and ``--device`` where a benchmark runs on others than the CPU."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    if device:
        parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")


def write(figures: Sequence[Figure], path: Path | None) -> None:
    """Write figures as JSON; ``None`` writes nothing."""
    if path is not None:
        path.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")
