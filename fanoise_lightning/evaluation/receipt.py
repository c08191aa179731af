"""Which published scores a scoreboard is within sampling error of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

from fanoise_lightning.evaluation.intervals import CONFIDENCE
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scores import MeanScore, ReferenceScores, SubsetScore

__all__ = ["Comparison", "Receipt", "outside_by_chance", "receipts"]

_ROUNDING = 0.0005  # published scores are percentages with one decimal
_SHOWN = 5  # scores that are farthest outside, in a line


@dataclass(frozen=True)
class Comparison:
    """A score beside a published one.

    Args:
        published: the published score, a fraction.
        difference: the score less the published one.
        inside: whether the published score, up to its rounding, is in the score's 95 % interval.
    """

    published: float
    difference: float
    inside: bool

    @classmethod
    def of(cls, score: SubsetScore | MeanScore, published: float) -> Comparison:
        """Compare a score with a published one."""
        lower, upper = score.interval
        inside = lower - _ROUNDING <= published <= upper + _ROUNDING
        return cls(published, score.precision - published, inside)


@dataclass(frozen=True)
class Receipt:
    """The scores of a scoreboard beside those of one published model.

    A score is *inside* if the published one is in its 95 % interval, that of the draw of the queries, which
    subsets of 1000 queries leave about 3 points wide to each side, and the mean of 36 about 0.5. Outside, the
    draw of the queries alone does not explain the difference. Inside does not say that the models are equal:
    both were asked the same queries, so smaller differences can be real, and only the published answers to
    each query would show them.

    Args:
        model: the published model.
        subsets: by name, as far as a score was published.
        means: likewise; each is over the same subsets.
    """

    model: str
    subsets: Mapping[str, Comparison]
    means: Mapping[str, Comparison]

    @property
    def num_inside(self) -> int:
        """How many of the subsets are inside."""
        return sum(comparison.inside for comparison in self.subsets.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON values; scores are fractions."""
        return {
            "subsets": {name: asdict(comparison) for name, comparison in self.subsets.items()},
            "means": {name: asdict(comparison) for name, comparison in self.means.items()},
            "num_inside": self.num_inside,
            "outside_by_chance": outside_by_chance(len(self.subsets)),
        }

    def line(self) -> str:
        """One line to print: counts, and what is farthest outside, with the difference in points."""
        parts = []
        if self.subsets:
            count, chance = len(self.subsets), outside_by_chance(len(self.subsets))
            parts.append(f"{self.num_inside} of {count} subsets inside ({chance} may be outside by chance)")
        if self.means:
            inside = sum(comparison.inside for comparison in self.means.values())
            parts.append(f"{inside} of {len(self.means)} means inside")
        compared = {**self.means, **self.subsets}.items()
        outside = {name: found.difference for name, found in compared if not found.inside}
        farthest = sorted(outside, key=lambda name: -abs(outside[name]))
        shown = [f"{name} {100 * outside[name]:+.1f}" for name in farthest[:_SHOWN]]
        if len(farthest) > _SHOWN:
            shown.append(f"and {len(farthest) - _SHOWN} more")
        text = f"sampling error of {self.model}: {', '.join(parts)}"
        return f"{text}; outside: {', '.join(shown)}" if shown else text


def receipts(board: Scoreboard, published: Mapping[str, ReferenceScores]) -> list[Receipt]:
    """A scoreboard beside each published model that it has a score in common with.

    Args:
        board: the scores.
        published: the published models by name.
    """
    found = []
    for model, reference in published.items():
        common = board.beside(reference)
        scored = {subset.name: subset for subset in board.subsets if subset.num_queries}
        subsets = {n: Comparison.of(scored[n], p) for n, p in common["subsets"].items() if n in scored}
        means = {name: Comparison.of(board.means[name], p) for name, p in common["means"].items()}
        if subsets or means:
            found.append(Receipt(model, subsets, means))
    return found


def outside_by_chance(count: int) -> int:
    """How many of some 95 % intervals miss what they estimate, at most, in 95 of 100 draws.

    Example:
        >>> outside_by_chance(36)
        4
    """
    miss, missed = 1 - CONFIDENCE, -1
    total = 0.0
    while total < CONFIDENCE:
        missed += 1
        total += comb(count, missed) * miss**missed * CONFIDENCE ** (count - missed)
    return missed
