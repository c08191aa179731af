"""Scores of subsets, and their unweighted means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Protocol, TypeVar

from fanoise_lightning.evaluation.intervals import mean_interval, wilson_interval
from fanoise_lightning.evaluation.precision_at_one import subset_result
from fanoise_lightning.evaluation.ranks import Ranks
from fanoise_lightning.evaluation.retrieval_metrics import RetrievalMetric
from fanoise_lightning.subset import DISTRIBUTIONS, Subset

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MeanScore", "MetricScore", "ReferenceScores", "SubsetScore", "group_by_mean", "mean_score"]


class _HasKind(Protocol):
    @property
    def meta_task(self) -> str: ...

    @property
    def distribution(self) -> str: ...

    @property
    def task(self) -> str | None: ...


_AnySubset = TypeVar("_AnySubset", bound=_HasKind)


@dataclass(frozen=True)
class MetricScore:
    """What a subset, or the mean of several, scores in a metric beside precision@1.

    Args:
        value: a fraction; for a median rank, a rank from 1.
        interval: its 95 % interval.
        chance: what a collapsed encoder scores: all candidates of a query in random order.
    """

    value: float
    interval: tuple[float, float]
    chance: float


@dataclass(frozen=True)
class SubsetScore:
    """The score of one subset.

    Args:
        name: the subset.
        meta_task: its meta-task, such as ``"retrieval"``.
        distribution: ``"IND"`` or ``"OOD"``.
        precision: precision@1, a fraction; NaN if no query was scored.
        num_queries: how many queries were scored.
        num_ties: how many of them have a ground truth that tied with others for the best score.
        num_skipped: how many queries could not be scored.
        floors: what is reached without a model: name (``"chance"``, ``"constant"``, ``"blind"``) to fraction.
        outcomes: what each query scored, (Q,): 0 to 1, NaN for a skipped one; ``None`` if that is unknown.
        task: the name of what is asked, if a subset of the other distribution asks it too.
        metrics: further metrics by name, such as ``"recall_at_10"``; empty if no query was scored.
        ranks: those of its queries; ``None`` if they are unknown.
    """

    name: str
    meta_task: str
    distribution: str
    precision: float
    num_queries: int
    num_ties: int = 0
    num_skipped: int = 0
    floors: Mapping[str, float] = field(default_factory=dict)
    outcomes: Tensor | None = field(default=None, repr=False, compare=False)
    task: str | None = None
    metrics: Mapping[str, MetricScore] = field(default_factory=dict)
    ranks: Ranks | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_ranks(cls, subset: Subset, ranks: Ranks, metrics: Sequence[RetrievalMetric] = ()) -> SubsetScore:
        """The score of a subset, with chance as a floor if the subset does not state it.

        Args:
            subset: its name, kind, floors and task.
            ranks: those of its queries.
            metrics: what to report beside precision@1.
        """
        score = cls.of(subset, ranks.precision_at_one().float())
        if not score.num_queries:
            return score
        by_chance = ranks.by_chance()
        chance = float(by_chance.precision_at_one().nanmean())
        values = {
            metric.name: MetricScore(metric.value(ranks), metric.interval(ranks), metric.value(by_chance))
            for metric in metrics
        }
        return replace(score, floors={"chance": chance} | dict(subset.floors), metrics=values, ranks=ranks)

    @classmethod
    def of(cls, subset: Subset, outcomes: Tensor) -> SubsetScore:
        """The score of a subset.

        Args:
            subset: its name, kind, floors and task.
            outcomes: (Q,), see :func:`~fanoise_lightning.evaluation.precision_at_one.query_outcomes`.
        """
        result = subset_result(outcomes)
        return cls(
            subset.name,
            subset.meta_task,
            subset.distribution,
            *result,
            floors=dict(subset.floors),
            outcomes=outcomes,
            task=subset.task,
        )

    @property
    def num_subsets(self) -> int:
        """1: what a :class:`MeanScore` counts."""
        return 1

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
        num_subsets: how many subsets it is over.
        floors: the means of the floors that all of these subsets have.
        metrics: the means of the further metrics that all of these subsets have.
    """

    precision: float
    interval: tuple[float, float]
    num_subsets: int
    floors: Mapping[str, float]
    metrics: Mapping[str, MetricScore] = field(default_factory=dict)


@dataclass(frozen=True)
class ReferenceScores:
    """Scores of another model, to show beside those of a scoreboard.

    Args:
        subsets: the score of each subset, a fraction; some or all may be missing.
        means: the known means, fractions, by their names in :attr:`Scoreboard.means`.
        members: the subsets that each of these means is over.
    """

    subsets: Mapping[str, float]
    means: Mapping[str, float]
    members: Mapping[str, Sequence[str]]

    def mean(self, name: str, over: Sequence[str]) -> float | None:
        """The mean over exactly these subsets.

        Args:
            name: the mean.
            over: the names of the subsets.

        Returns:
            The known mean if it is over these subsets, else the mean of their scores; ``None`` if one of the
            scores is missing.
        """
        if name in self.means and set(over) == set(self.members[name]):
            return self.means[name]
        if not all(subset in self.subsets for subset in over):
            return None
        return fmean(self.subsets[subset] for subset in over)


def group_by_mean(subsets: Iterable[_AnySubset]) -> dict[str, list[_AnySubset]]:
    """The subsets that each mean is over.

    They are the mean of each meta-task, of each distribution (``"IND"``, ``"OOD"``), and ``"overall"``; and
    ``"IND_shared"`` and ``"OOD_shared"``, over the subsets whose task both distributions have, if there are
    any: IND and OOD by themselves may be over tasks of different difficulty.

    Example:
        >>> seen, unseen = Subset("a", "vqa", "IND", task="kind"), Subset("b", "vqa", "OOD", task="kind")
        >>> groups = group_by_mean([seen, Subset("easy", "vqa", "IND"), unseen])
        >>> {mean: [subset.name for subset in group] for mean, group in groups.items() if "IND" in mean}
        {'IND': ['a', 'easy'], 'IND_shared': ['a']}
    """
    subsets = list(subsets)
    tasks = [{s.task for s in subsets if s.distribution == distribution} for distribution in DISTRIBUTIONS]
    shared = set.intersection(*tasks) - {None}
    groups: dict[str, list[_AnySubset]] = {}
    for subset in subsets:
        means = [subset.meta_task, subset.distribution, "overall"]
        if subset.task in shared:
            means.append(f"{subset.distribution}_shared")
        for mean in means:
            groups.setdefault(mean, []).append(subset)
    return groups


def mean_score(scores: Sequence[SubsetScore] | Sequence[MeanScore]) -> MeanScore:
    """The mean of some scores, with its interval and the floors that all of them have."""
    estimates = [score.precision for score in scores]
    shared = _shared([score.floors for score in scores])
    metrics = _shared([score.metrics for score in scores])
    return MeanScore(
        precision=fmean(estimates),
        interval=mean_interval(estimates, [score.interval for score in scores]),
        num_subsets=sum(score.num_subsets for score in scores),
        floors={floor: fmean(score.floors[floor] for score in scores) for floor in shared},
        metrics={name: _mean_metric([score.metrics[name] for score in scores]) for name in metrics},
    )


def _shared(parts: Sequence[Mapping[str, object]]) -> list[str]:
    return [name for name in parts[0] if all(name in part for part in parts)]


def _mean_metric(scores: Sequence[MetricScore]) -> MetricScore:
    values = [score.value for score in scores]
    interval = mean_interval(values, [score.interval for score in scores])
    return MetricScore(fmean(values), interval, fmean(score.chance for score in scores))
