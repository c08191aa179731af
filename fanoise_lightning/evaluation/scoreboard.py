"""The scoreboard: a score per subset, and the means that MMEB reports, each with its interval and floors.

Means are unweighted over subsets. The mean of the meta-tasks' means, which other papers report, is another
number (62.9 instead of 60.1 for one published model) and has its own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fanoise_lightning.evaluation.intervals import CONFIDENCE
from fanoise_lightning.evaluation.scores import (
    MeanScore,
    ReferenceScores,
    SubsetScore,
    group_by_mean,
    mean_score,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Scoreboard"]


@dataclass(frozen=True)
class Scoreboard:
    """Scores per subset, and their means per meta-task, per distribution, over shared tasks, and overall.

    Subsets without a scored query are shown but count in no mean. A group without scored subsets has no mean.

    Args:
        subsets: the scores of the subsets, in the order to show them.
        sides_per_second: how many different queries and targets were embedded per second, over all ranks and
            with the time to read them; ``None`` if that is unknown.

    Raises:
        ValueError: if two subsets have the same name.

    Example:
        >>> gqa = SubsetScore("GQA", "vqa", "OOD", precision=0.25, num_queries=1000)
        >>> board = Scoreboard([SubsetScore("OK-VQA", "vqa", "IND", 0.5, 1000), gqa])
        >>> board.overall.precision
        0.375
        >>> sorted(board.metrics("val"))[0]
        'val/precision_at_1/IND'
    """

    subsets: Sequence[SubsetScore]
    sides_per_second: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        names = [subset.name for subset in self.subsets]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"the subsets {repeated} appear more than once in the scoreboard")

    @cached_property
    def meta_tasks(self) -> dict[str, MeanScore]:
        """The mean of each meta-task over its subsets, in order of appearance."""
        names = dict.fromkeys(subset.meta_task for subset in self._scored)
        return {name: mean_score(self.groups[name]) for name in names}

    @cached_property
    def distributions(self) -> dict[str, MeanScore]:
        """The means over the in-distribution (``"IND"``) and out-of-distribution (``"OOD"``) subsets."""
        names = sorted({subset.distribution for subset in self._scored})
        return {name: mean_score(self.groups[name]) for name in names}

    @cached_property
    def shared(self) -> dict[str, MeanScore]:
        """The means over the tasks that both distributions have: ``"IND_shared"`` and ``"OOD_shared"``.

        IND and OOD are over different tasks, some easier than others; the shared means are over the same
        tasks. Empty if no two subsets share a task.
        """
        names = [f"{distribution}_shared" for distribution in self.distributions]
        return {name: mean_score(self.groups[name]) for name in names if name in self.groups}

    @cached_property
    def overall(self) -> MeanScore | None:
        """The mean over all subsets."""
        return mean_score(self._scored) if self._scored else None

    @cached_property
    def mean_of_meta_tasks(self) -> MeanScore | None:
        """The mean of the meta-tasks' means, in which all meta-tasks weigh the same, whatever their size."""
        return mean_score(list(self.meta_tasks.values())) if self.meta_tasks else None

    @cached_property
    def means(self) -> dict[str, MeanScore]:
        """All means: meta-tasks, distributions, shared ones, ``"overall"``, ``"mean_of_meta_tasks"``."""
        means = {**self.meta_tasks, **self.distributions, **self.shared}
        if self.overall is not None and self.mean_of_meta_tasks is not None:
            means |= {"overall": self.overall, "mean_of_meta_tasks": self.mean_of_meta_tasks}
        return means

    @cached_property
    def groups(self) -> dict[str, list[SubsetScore]]:
        """The scored subsets that each mean is over, except ``"mean_of_meta_tasks"``, a mean of means."""
        return group_by_mean(self._scored)

    def beside(self, reference: ReferenceScores) -> dict[str, dict[str, float]]:
        """The scores of a reference that are comparable with this scoreboard's.

        Returns:
            ``{"subsets": {name: fraction}, "means": {name: fraction}}``, as far as they are known. Each mean
            is over the same subsets as the scoreboard's.
        """
        subsets = {s.name: reference.subsets[s.name] for s in self.subsets if s.name in reference.subsets}
        means: dict[str, float] = {}
        for name, group in self.groups.items():
            mean = reference.mean(name, [subset.name for subset in group])
            if mean is not None:
                means[name] = mean
        if self.meta_tasks and all(name in means for name in self.meta_tasks):
            means["mean_of_meta_tasks"] = fmean(means[name] for name in self.meta_tasks)
        return {"subsets": subsets, "means": {name: means[name] for name in self.means if name in means}}

    def metrics(self, prefix: str) -> dict[str, float]:
        """Fractions for ``log_dict``.

        Args:
            prefix: the stage, such as ``"val"``.

        Returns:
            ``{prefix}/precision_at_1/{mean}`` for each of :attr:`means`, and
            ``{prefix}/precision_at_1/{meta_task}/{subset}`` for each subset with scored queries; likewise
            ``{prefix}/{metric}/...`` for each further metric. Of a single subset, whose means are all its own
            score, only ``overall``.
        """
        scores: dict[str, SubsetScore | MeanScore] = {**self.means}
        scores |= {f"{s.meta_task}/{s.name}": s for s in self._scored}
        if len(self.subsets) == 1:
            scores = {name: score for name, score in scores.items() if name == "overall"}
        values = {f"{prefix}/precision_at_1/{name}": score.precision for name, score in scores.items()}
        for metric in self._metrics:
            known = {name: score.metrics[metric] for name, score in scores.items() if metric in score.metrics}
            values |= {f"{prefix}/{metric}/{name}": score.value for name, score in known.items()}
        return values

    def to_dict(self) -> dict[str, Any]:
        """The scoreboard as JSON values. All scores are fractions, 0 to 1, but the ``median_rank``.

        Returns:
            ``{"metric": "precision_at_1", "confidence": 0.95, "subsets": {...}, "means": {...}}``.

            A subset is ``{"meta_task", "distribution", "precision", "interval": [lower, upper],
            "num_queries", "num_ties", "num_skipped", "floors": {name: fraction}}``, and a ``"task"`` if it
            has one; precision and interval are null if no query was scored. A mean (see :attr:`means`) is
            ``{"precision", "interval", "num_subsets", "floors"}``. Both have further metrics, if there are
            any, as ``"metrics": {name: {"value", "interval", "chance"}}``.
        """
        return {
            "metric": "precision_at_1",
            "confidence": CONFIDENCE,
            "subsets": {subset.name: _subset_dict(subset) for subset in self.subsets},
            "means": {name: _mean_dict(mean) for name, mean in self.means.items()},
        }

    def table(self, title: str = "", references: Mapping[str, ReferenceScores] | None = None) -> Table:
        """The scoreboard to print: percentages by meta-task, with the floors beside each score.

        A single subset is one line, or one for each metric.

        Args:
            title: a line above the table.
            references: scores of other models, one column each; see :meth:`beside`.
        """
        if len(self.subsets) == 1 and self._metrics:
            return _table_of_one(self.subsets[0], title)
        floors = list(dict.fromkeys(name for subset in self.subsets for name in subset.floors))
        others = {header: self.beside(scores) for header, scores in (references or {}).items()}
        counts = self._count_columns()
        headers = ["score", "95 %", *others, *floors, *map(_label, self._metrics), *counts]
        table = _empty_table(title, "precision@1, %", headers)

        def cells(kind: str, name: str, score: SubsetScore | MeanScore | None) -> list[str]:
            """Score, interval, references, floors and metrics; a dash for each that is missing."""
            known = {} if score is None else score.floors
            more = {} if score is None else score.metrics
            return [
                *_estimate(score),
                *(_percent(other[kind].get(name)) for other in others.values()),
                *(_percent(known.get(floor)) for floor in floors),
                *(_value(metric, more[metric].value) if metric in more else "-" for metric in self._metrics),
            ]

        if len(self.subsets) == 1:  # all means are its own score
            (s,) = self.subsets
            numbers = [str(getattr(s, name)) for name in counts.values()]
            row = cells("subsets", s.name, s if s.num_queries else None)
            table.add_row(s.name, s.distribution, *row, *numbers)
            return table
        for meta_task in dict.fromkeys(subset.meta_task for subset in self.subsets):
            mean = self.meta_tasks.get(meta_task)
            table.add_row(meta_task, "", *cells("means", meta_task, mean), style="bold")
            for s in self.subsets:
                if s.meta_task == meta_task:
                    numbers = [str(getattr(s, name)) for name in counts.values()]
                    row = cells("subsets", s.name, s if s.num_queries else None)
                    table.add_row(f"  {s.name}", s.distribution, *row, *numbers)
            table.add_section()
        for name, mean in self.means.items():
            if name not in self.meta_tasks:
                table.add_row(name.replace("_", " "), "", *cells("means", name, mean), style="bold")
        return table

    @property
    def _scored(self) -> list[SubsetScore]:
        return [subset for subset in self.subsets if subset.num_queries]

    @property
    def _metrics(self) -> list[str]:
        return list(dict.fromkeys(name for subset in self.subsets for name in subset.metrics))

    def _count_columns(self) -> dict[str, str]:
        """The field of each column of counts; without ties or skipped queries, theirs are omitted."""
        columns = {"n": "num_queries"}
        if any(subset.num_ties for subset in self.subsets):
            columns["ties"] = "num_ties"
        if any(subset.num_skipped for subset in self.subsets):
            columns["skipped"] = "num_skipped"
        return columns


def _table_of_one(subset: SubsetScore, title: str) -> Table:
    """The metrics of a subset, one a line."""
    others = [name for name in subset.floors if name != "chance"]
    table = _empty_table(title, f"{subset.name}, %", ["score", "95 %", "chance", *others, "n"])
    count = str(subset.num_queries)
    floors = [_percent(subset.floors.get(name)) for name in ("chance", *others)]
    table.add_row("precision@1", subset.distribution, *_estimate(subset), *floors, count)
    for name, score in subset.metrics.items():
        interval = "–".join(_value(name, limit) for limit in score.interval)
        values = [_value(name, score.value), interval, _value(name, score.chance)]
        table.add_row(_label(name), "", *values, *["-"] * len(others), count)
    return table


def _empty_table(title: str, first: str, headers: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title or None, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    table.add_column("")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _subset_dict(subset: SubsetScore) -> dict[str, Any]:
    scored = subset.num_queries > 0
    return {
        "meta_task": subset.meta_task,
        "distribution": subset.distribution,
        "precision": subset.precision if scored else None,
        "interval": list(subset.interval) if scored else None,
        "num_queries": subset.num_queries,
        "num_ties": subset.num_ties,
        "num_skipped": subset.num_skipped,
        "floors": dict(subset.floors),
        **({} if subset.task is None else {"task": subset.task}),
        **_metrics_dict(subset),
    }


def _mean_dict(mean: MeanScore) -> dict[str, Any]:
    return {
        "precision": mean.precision,
        "interval": list(mean.interval),
        "num_subsets": mean.num_subsets,
        "floors": dict(mean.floors),
        **_metrics_dict(mean),
    }


def _metrics_dict(score: SubsetScore | MeanScore) -> dict[str, Any]:
    metrics = {
        name: {"value": found.value, "interval": list(found.interval), "chance": found.chance}
        for name, found in score.metrics.items()
    }
    return {"metrics": metrics} if metrics else {}


def _estimate(score: SubsetScore | MeanScore | None) -> tuple[str, str]:
    if score is None:
        return "-", "-"
    lower, upper = score.interval
    return _percent(score.precision), f"{100 * lower:.1f}–{100 * upper:.1f}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _label(metric: str) -> str:
    """``recall@10`` for ``recall_at_10``."""
    return {"mrr": "MRR", "median_rank": "median rank"}.get(metric, metric.replace("_at_", "@"))


def _value(metric: str, value: float) -> str:
    return f"{value:.1f}" if metric == "median_rank" else _percent(value)
