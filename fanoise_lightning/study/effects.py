"""The difference between two arms: how large, how certain, and what would have been seen.

Runs are paired by seed, and queries by their place. There are two sources of chance, each with an interval:

* other seeds: a paired t interval over the seeds, for the same queries;
* other queries: a t interval over the queries of each subset, averaged over the seeds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.power import TTestPower

from fanoise_lightning.evaluation.intervals import mean_interval

__all__ = ["Effect", "effect"]

POWER = 0.8
_SAME = 1e-12  # scores are fractions of queries: less is rounding

Interval = tuple[float, float]


@dataclass(frozen=True)
class Effect:
    """A difference of precision@1, in fractions: the arm less the baseline.

    Args:
        difference: the mean over the seeds.
        per_seed: of each seed.
        seeds: the interval for other seeds; ``None`` for a single seed, and if all seeds have the same
            difference other than 0, which says nothing about their spread.
        queries: the interval for other queries.
        p_value: of the paired t test over the seeds, two-sided, not corrected; ``None`` likewise.
        detectable: the smallest true difference that would be seen with a power of 0.8; ``None`` likewise.
    """

    difference: float
    per_seed: tuple[float, ...]
    seeds: Interval | None
    queries: Interval
    p_value: float | None
    detectable: float | None


def effect(differences: Mapping[str, NDArray[np.float64]], confidence: float) -> Effect:
    """The effect on the unweighted mean of some subsets.

    Args:
        differences: subset to the arm's outcomes less the baseline's, (S, Q): seeds, queries; NaN where
            either skipped the query.
        confidence: of the intervals, such as 0.95.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = effect({"a": 0.1 + rng.normal(0, 0.1, (8, 200))}, 0.95)
        >>> found.seeds[0] < 0.1 < found.seeds[1]
        True
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")  # a query that no seed scored
        per_subset = np.stack([np.nanmean(d, axis=1) for d in differences.values()])  # (K, S)
        per_query = [np.nanmean(d, axis=0) for d in differences.values()]
    per_seed = per_subset.mean(axis=0)
    means = [float(np.nanmean(d)) for d in per_query]
    limits = [_t_interval(d[~np.isnan(d)], confidence) for d in per_query]
    seeds, p_value, detectable = None, None, None
    # a few seeds with few queries often agree by chance: their t interval has no width, and their p is 0
    agree = np.ptp(per_seed) < _SAME and abs(per_seed[0]) >= _SAME
    if len(per_seed) > 1 and not agree:
        seeds = _t_interval(per_seed, confidence)
        p_value = _p_value(per_seed)
        detectable = _detectable(per_seed, 1 - confidence)
    queries = mean_interval(means, limits)
    return Effect(float(per_seed.mean()), tuple(map(float, per_seed)), seeds, queries, p_value, detectable)


def _t_interval(values: Sequence[float] | NDArray[np.float64], confidence: float) -> Interval:
    values = np.asarray(values)
    if len(values) < 2 or np.ptp(values) == 0:  # scipy has no interval without a spread
        return float(values.mean()), float(values.mean())
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    return float(low), float(high)


def _p_value(values: NDArray[np.float64]) -> float:
    if np.ptp(values) == 0:
        return 1.0
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def _detectable(values: NDArray[np.float64], alpha: float) -> float:
    return float(values.std(ddof=1)) * _detectable_spreads(len(values), alpha)


@cache
def _detectable_spreads(count: int, alpha: float) -> float:
    """The smallest detectable mean of so many values, in standard deviations."""
    return float(TTestPower().solve_power(nobs=count, alpha=alpha, power=POWER))
