"""The right answers of a query, from the pairs that it is in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["chance_of", "left_out", "merge_answers"]

Ints = NDArray[np.int64]


def merge_answers(queries: Ints, candidates: Ints) -> tuple[Ints, Ints, Ints]:
    """One row for each query instead of one for each of its right answers.

    Args:
        queries: ``(N,)``, the query of each pair.
        candidates: ``(N, C)``, the target of the pair first, then wrong answers, ``-1`` after the last.

    Returns:
        The Q different queries in the order of their first pairs, ``(Q,)``; their candidates, ``(Q, C')``,
        which are all targets of the query, then the wrong answers of its first pair; and how many are right,
        ``(Q,)``.

    Example:
        >>> pairs = np.array([7, 8, 7]), np.array([[1, 2], [2, 3], [4, 5]])
        >>> queries, candidates, num_right = merge_answers(*pairs)
        >>> queries.tolist(), candidates.tolist(), num_right.tolist()
        ([7, 8], [[1, 4, 2], [2, 3, -1]], [2, 1])
    """
    _, first, row = np.unique(queries, return_index=True, return_inverse=True)
    order = np.argsort(first)
    first, row = first[order], np.argsort(order)[row]
    pairs = np.unique(np.stack([row, candidates[:, 0]]), axis=1, return_index=True)[1]  # each answer once
    pairs = pairs[np.lexsort((pairs, row[pairs]))]  # by query, in the order of the pairs
    num_right = np.bincount(row[pairs])
    most = num_right.max()
    merged = np.full((len(first), most + candidates.shape[1] - 1), -1, dtype=np.int64)
    place = np.arange(len(pairs)) - np.repeat(np.cumsum(num_right) - num_right, num_right)
    merged[row[pairs], place] = candidates[pairs, 0]
    merged[:, most:] = candidates[first, 1:]
    gaps = merged < 0
    if gaps.any():  # close those between the right and the wrong answers
        merged = np.take_along_axis(merged, np.argsort(gaps, axis=1, kind="stable"), axis=1)
    return queries[first], merged[:, : (~gaps).sum(axis=1).max()], num_right


def left_out(queries: Ints, candidates: Ints, known: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    """The `known` right answers of each query that are not among its candidates, nor the query itself.

    Args:
        queries: ``(Q,)``, each once.
        candidates: ``(Q, C)``, ``-1`` after the last.
        known: pairs: ``(M,)`` queries, some of them in `queries`, and ``(M,)`` targets.

    Returns:
        Those of all queries, flat, and how many each query has, ``(Q,)``.

    Example:
        >>> known = np.array([8, 8]), np.array([2, 1])
        >>> flat, counts = left_out(np.array([7, 8]), np.array([[1], [2]]), known)
        >>> flat.tolist(), counts.tolist()
        ([1], [0, 1])
    """
    order = np.argsort(queries)
    place = np.minimum(np.searchsorted(queries, known[0], sorter=order), len(queries) - 1)
    row, target = order[place], known[1]
    wanted = (queries[row] == known[0]) & (known[0] != target)
    row, target = np.unique(np.stack([row[wanted], target[wanted]]), axis=1)
    new = ~(candidates[row] == target[:, None]).any(axis=1)
    return target[new], np.bincount(row[new], minlength=len(queries))


def chance_of(
    queries: Ints, candidates: Ints, num_right: Ints, catalogue: Ints | None, num_excluded: Ints | int = 0
) -> tuple[Ints, float]:
    """How many candidates each query has, ``(Q,)``, and the precision@1 of guessing among them."""
    counts = (candidates >= 0).sum(axis=1)
    if catalogue is not None:
        counts -= num_excluded
        known = np.isin(candidates, catalogue).sum(axis=1)
        itself = np.isin(queries, catalogue) & ~(candidates == queries[:, None]).any(axis=1)
        counts = counts + len(catalogue) - known - itself
    return counts, float((num_right / counts).mean())
