"""95 % intervals of a precision and of the mean of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

__all__ = ["CONFIDENCE", "mean_interval", "wilson_interval"]

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def wilson_interval(precision: float, num_queries: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion, which keeps its coverage near 0 and 1 and for few queries.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927. Outcomes
    between 0 and 1 (ties) vary less than the interval allows for.

    Args:
        precision: the proportion, 0 to 1.
        num_queries: of how many queries, at least 1.

    Example:
        >>> tuple(round(limit, 4) for limit in wilson_interval(81 / 263, 263))
        (0.2553, 0.3662)
    """
    shrink = _Z * _Z / num_queries
    centre = (precision + shrink / 2) / (1 + shrink)
    half = math.sqrt(shrink * precision * (1 - precision) + shrink * shrink / 4) / (1 + shrink)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(
    estimates: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """The interval of the unweighted mean of independent estimates, from the interval of each.

    MOVER, the method of variance estimates recovery: distances from estimate to limit are squared, added and
    rooted, on each side for itself, so that the asymmetry of the Wilson limits survives. Zou and Donner,
    "Construction of confidence intervals about effect measures", Statistics in Medicine 27, 2008; for linear
    functions of proportions Zou, Huang and Zhang, Computational Statistics & Data Analysis 53, 2009.

    It tells what other queries of the same subsets would give, not other subsets.

    Args:
        estimates: the estimates.
        intervals: (lower, upper) of each.

    Example:
        >>> mean_interval([0.5, 0.5], [(0.4, 0.6), (0.4, 0.6)])  # narrower by sqrt(2)
        (0.4292893218813453, 0.5707106781186547)
    """
    mean = sum(estimates) / len(estimates)
    below = math.hypot(*(value - lower for value, (lower, _) in zip(estimates, intervals)))
    above = math.hypot(*(upper - value for value, (_, upper) in zip(estimates, intervals)))
    return mean - below / len(estimates), mean + above / len(estimates)
