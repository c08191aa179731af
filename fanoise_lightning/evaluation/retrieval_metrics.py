"""Recall@k, NDCG@k, MRR and median rank, from the ranks of right answers.

The values are those of ``torchmetrics.functional.retrieval`` where no scores tie and right answers have
positive ones: in recall and MRR, torchmetrics takes one with a score of zero or below for wrong. Where scores
tie, torchmetrics lets the order of the candidates decide; here a tie counts what it is worth on average over
all orders of the tied [0], as in precision@1. So a collapsed encoder scores chance.

References:
    [0] McSherry and Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence
        of Tied Scores", ECIR 2008.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fanoise_lightning.evaluation.intervals import median_interval, wilson_interval
from fanoise_lightning.evaluation.ranks import Ranks

__all__ = ["RetrievalMetric", "retrieval_metrics"]

_AT_K = re.compile(r"(recall|ndcg)_at_([1-9]\d*)")


@dataclass(frozen=True)
class RetrievalMetric:
    """A retrieval metric.

    Args:
        name: what it is logged as, such as ``"recall_at_10"``.
        per_query: what each query scores, (Q,) float64; arbitrary for a query without right answers.
        is_median: whether the queries' median is reported, a rank from 1, instead of their mean, a fraction.
    """

    name: str
    per_query: Callable[[Ranks], Tensor]
    is_median: bool = False

    def values(self, ranks: Ranks) -> Tensor:
        """What each of the scored queries scores, (Q',) float64."""
        return self.per_query(ranks)[ranks.is_scored]

    def value(self, ranks: Ranks) -> float:
        """The metric over all scored queries, of which there must be one."""
        values = self.values(ranks)
        return float(values.quantile(0.5) if self.is_median else values.mean())

    def interval(self, ranks: Ranks) -> tuple[float, float]:
        """Its 95 % interval: over other queries of the same kind."""
        values = self.values(ranks)
        if self.is_median:
            return median_interval(values.tolist())
        return wilson_interval(float(values.mean()), len(values))


def retrieval_metrics(names: Iterable[str]) -> list[RetrievalMetric]:
    """The metrics of these names.

    Args:
        names: ``"recall_at_k"`` and ``"ndcg_at_k"``, with a number for k; ``"mrr"``; ``"median_rank"``.

    Raises:
        TypeError: if `names` is a string.
        ValueError: for an unknown name, or one given twice.

    Example:
        >>> ranks = Ranks(*map(torch.tensor, ([[True]], [[1]], [[1]], [1], [5])))  # second of five
        >>> {metric.name: metric.value(ranks) for metric in retrieval_metrics(["recall_at_1", "mrr"])}
        {'recall_at_1': 0.0, 'mrr': 0.5}
    """
    if isinstance(names, str):
        raise TypeError(f"`metrics` must be a list of names, got {names!r}: pass [{names!r}]")
    names = list(names)
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"`metrics` has {repeated!r} twice")
    return [_metric(name) for name in names]


def _metric(name: str) -> RetrievalMetric:
    if name == "mrr":
        return RetrievalMetric(name, _reciprocal_rank)
    if name == "median_rank":
        return RetrievalMetric(name, _first_rank, is_median=True)
    found = _AT_K.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        always = "; precision_at_1 is always reported" if name == "precision_at_1" else ""
        raise ValueError(
            "`metrics` takes 'recall_at_1', 'recall_at_5' or another number, 'ndcg_at_10' likewise, 'mrr' "
            f"and 'median_rank', got {name!r}{always}"
        )
    kind = {"recall": _recall, "ndcg": _ndcg}[found[1]]
    return RetrievalMetric(name, partial(kind, k=int(found[2])))


def _recall(ranks: Ranks, k: int) -> Tensor:
    """The share of the right answers that are among the first k."""
    inside = ((k - ranks.better) / ranks.tied.double()).clamp(0, 1)
    return _sum(ranks, inside) / ranks.is_right.sum(dim=1)


def _ndcg(ranks: Ranks, k: int) -> Tensor:
    """The discounted gain of the right answers among the first k, relative to the best order's."""
    discounts = 1 / torch.arange(2, k + 2).double().log2()
    total = torch.cat([torch.zeros(1, dtype=torch.double), discounts.cumsum(0)])  # of the first n places
    start, end = ranks.better.clamp_max(k), (ranks.better + ranks.tied).clamp_max(k)
    gain = _sum(ranks, (total[end] - total[start]) / ranks.tied)
    return gain / total[ranks.is_right.sum(dim=1).clamp_max(k)]


def _first_rank(ranks: Ranks) -> Tensor:
    """The place of the first right answer, from 1, on average over the orders of the tied."""
    better, tied = ranks.first
    return better + (tied + 1) / (ranks.first_tied + 1).double()


def _reciprocal_rank(ranks: Ranks) -> Tensor:
    """1 / the place of the first right answer, on average over the orders of the tied."""
    better, tied = ranks.first
    triples, inverse = torch.stack([better, tied, ranks.first_tied], dim=1).unique(dim=0, return_inverse=True)
    return torch.stack([_mean_reciprocal(*triple) for triple in triples.tolist()])[inverse]


def _mean_reciprocal(better: int, tied: int, right: int) -> Tensor:
    """The mean of 1 / (better + j), where j is the first place that a right one of the tied has."""
    place = torch.arange(1, tied - right + 2).double()
    # the next place is the first if no right one is in this place: of those that are left, as many as `right`
    missed = (tied - right - place + 1) / (tied - place + 1)  # at `place`, given no right one before
    reached = torch.cat([torch.ones(1, dtype=torch.double), missed[:-1].cumprod(0)])
    return (reached * (1 - missed) / (better + place)).sum()


def _sum(ranks: Ranks, values: Tensor) -> Tensor:
    return values.masked_fill(~ranks.is_right, 0).sum(dim=1)
