"""95 % intervals for a proportion, for a median, and for the mean of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

__all__ = ["CONFIDENCE", "mean_interval", "median_interval", "wilson_interval"]

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def wilson_interval(precision: float, num_queries: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion [0], which keeps its coverage near 0 and 1 and for few queries.

    Ties, and metrics such as NDCG, count between 0 and 1 and so vary less than the interval assumes: with
    them it is too wide, if anything.

    Args:
        precision: the proportion, 0 to 1.
        num_queries: the number of queries, at least 1.

    Returns:
        ``(lower, upper)``, 0 to 1.

    References:
        [0] Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.

    Example:
        >>> tuple(round(limit, 4) for limit in wilson_interval(81 / 263, 263))
        (0.2553, 0.3662)
    """
    shrink = _Z * _Z / num_queries
    centre = (precision + shrink / 2) / (1 + shrink)
    half = math.sqrt(shrink * precision * (1 - precision) + shrink * shrink / 4) / (1 + shrink)
    return max(0.0, centre - half), min(1.0, centre + half)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a median, whatever the distribution: two of the values, by their order [0].

    Args:
        values: at least 1; of fewer than 6, the interval is their range, and covers less.

    Returns:
        ``(lower, upper)``.

    References:
        [0] Conover, "Practical Nonparametric Statistics", third edition, 1999, section 3.2.

    Example:
        >>> median_interval(range(1, 101))
        (40, 61)
    """
    ordered, count = sorted(values), len(values)
    below, wins = 0.0, 0  # the chance that fewer than `wins` of the values lie below the median
    while wins < count // 2:
        more = below + math.exp(_log_choose(count, wins) - count * math.log(2))
        if more > (1 - CONFIDENCE) / 2:
            break
        below, wins = more, wins + 1
    place = max(wins - 1, 0)
    return ordered[place], ordered[count - 1 - place]


def _log_choose(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def mean_interval(
    estimates: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """The interval of the unweighted mean of independent estimates, from their own intervals.

    MOVER, the method of variance estimates recovery [0, 1]: the distances from estimate to limit are combined
    as the root of their sum of squares, separately below and above, which preserves the asymmetry of the
    Wilson limits.

    It covers other queries of the same subsets, not with other subsets.

    Args:
        estimates: the estimates.
        intervals: (lower, upper) of each.

    Returns:
        ``(lower, upper)``.

    References:
        [0] Zou and Donner, "Construction of confidence intervals about effect measures", Statistics in
        Medicine 27, 2008.
        [1] Zou, Huang and Zhang, on linear functions of proportions, Computational Statistics & Data Analysis
        53, 2009.

    Example:
        >>> mean_interval([0.5, 0.5], [(0.4, 0.6), (0.4, 0.6)])  # narrower by sqrt(2)
        (0.4292893218813453, 0.5707106781186547)
    """
    mean = fmean(estimates)
    below = math.hypot(*(value - lower for value, (lower, _) in zip(estimates, intervals)))
    above = math.hypot(*(upper - value for value, (_, upper) in zip(estimates, intervals)))
    return mean - below / len(estimates), mean + above / len(estimates)
