"""Scores of subsets, and their unweighted means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fanoise_lightning.evaluation.intervals import mean_interval, wilson_interval

if TYPE_CHECKING:
    from fanoise_lightning.evaluation.precision_at_one import SubsetResult

__all__ = ["MeanScore", "ReferenceScores", "SubsetScore", "mean_score"]


@dataclass(frozen=True)
class SubsetScore:
    """The score of one subset.

    Args:
        name: the subset.
        meta_task: its meta-task, such as ``"retrieval"``.
        distribution: ``"IND"`` or ``"OOD"``.
        precision: precision@1, a fraction; NaN where no query was scored.
        num_queries: how many queries were scored.
        num_ties: queries whose ground truth tied with others for the best score.
        num_skipped: queries that could not be scored.
        floors: what needs no model: name (``"chance"``, ``"constant"``, ``"blind"``) to a fraction.
    """

    name: str
    meta_task: str
    distribution: str
    precision: float
    num_queries: int
    num_ties: int = 0
    num_skipped: int = 0
    floors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, subset: Any, result: SubsetResult) -> SubsetScore:
        """The score of a subset.

        Args:
            subset: its name, meta_task, distribution and floors.
            result: what :class:`~fanoise_lightning.evaluation.precision_at_one.PrecisionAtOne` computed.
        """
        floors = dict(subset.floors)
        return cls(subset.name, subset.meta_task, subset.distribution, floors=floors, **result)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval, fractions."""
        return wilson_interval(self.precision, self.num_queries)


@dataclass(frozen=True)
class MeanScore:
    """An unweighted mean.

    Args:
        precision: the mean precision@1, a fraction.
        interval: its 95 % interval, fractions.
        num_subsets: over how many subsets.
        floors: the means of the floors that all these subsets have.
    """

    precision: float
    interval: tuple[float, float]
    num_subsets: int
    floors: Mapping[str, float]


@dataclass(frozen=True)
class ReferenceScores:
    """Scores of another model, to stand beside those of a scoreboard.

    Args:
        subsets: the score of each subset, fractions; may lack some, or all.
        means: the means that are known, by the names of :attr:`Scoreboard.means`.
        members: the subsets that each of these means is over.
    """

    subsets: Mapping[str, float]
    means: Mapping[str, float]
    members: Mapping[str, Sequence[str]]

    def mean(self, name: str, over: Sequence[str]) -> float | None:
        """The mean over just these subsets: as it is known, else from their scores, ``None`` if one lacks.

        Args:
            name: of the mean.
            over: the names of the subsets.
        """
        if name in self.means and set(over) == set(self.members[name]):
            return self.means[name]
        if not all(subset in self.subsets for subset in over):
            return None
        return sum(self.subsets[subset] for subset in over) / len(over)


def mean_score(scores: Sequence[SubsetScore] | Sequence[MeanScore]) -> MeanScore:
    """The mean of some scores, with its interval and the floors that all of them have."""
    estimates = [score.precision for score in scores]
    floors = [name for name in scores[0].floors if all(name in score.floors for score in scores)]
    return MeanScore(
        precision=sum(estimates) / len(estimates),
        interval=mean_interval(estimates, [score.interval for score in scores]),
        num_subsets=sum(getattr(score, "num_subsets", 1) for score in scores),
        floors={name: sum(score.floors[name] for score in scores) / len(scores) for name in floors},
    )
