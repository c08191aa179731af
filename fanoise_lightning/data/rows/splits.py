"""Which pairs are held out to validate on, and how much of them is trained on nevertheless."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pairs", "Split", "count_candidates", "hold_out", "no_distractors", "split"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Pairs as numbers: what has the same number is the same.

    Args:
        queries: (N,), references.
        targets: (N,), references, numbered together with the queries.
        query_images: (N,), -1 for none.
        target_images: (N,), numbered together with the query's, -1 for none.
    """

    queries: Ints
    targets: Ints
    query_images: Ints
    target_images: Ints

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, index: Ints | NDArray[np.bool_]) -> Pairs:
        """The pairs at `index`."""
        return Pairs(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def seen(self, trained: Pairs) -> dict[str, tuple[int, int]]:
        """How many of the different queries, targets and images are in `trained` too, and of how many.

        A reference is trained on whichever role it has there: a query may be what was a target.
        """
        references = np.concatenate([trained.queries, trained.targets])
        parts = {
            "queries": (self.queries, references),
            "targets": (self.targets, references),
            "images": (self._images, trained._images),
        }
        numbers = {}
        for name, (numbered, theirs) in parts.items():
            mine = np.unique(numbered[numbered >= 0])
            numbers[name] = (int(np.isin(mine, theirs).sum()), len(mine))
        return numbers

    @property
    def _images(self) -> Ints:
        return np.concatenate([self.query_images, self.target_images])


@dataclass(frozen=True)
class Split:
    """What is held out.

    Args:
        held_out: (N,), which pairs.
        by: what was kept on one side of the split.
    """

    held_out: NDArray[np.bool_]
    by: str


def split(pairs: Pairs, fraction: float, seed: int) -> Split | None:
    """Hold out a `fraction` of the pairs, by the strictest rule that leaves something to find.

    1. Pairs that are connected by a query, a target or an image stay together: nothing is on both sides.
    2. Pairs that are connected by a query or a target.
    3. All pairs of a query, or where there are fewer queries than targets, all pairs of a target; and both
       directions of a pair. For labels and the like, which connect most pairs: targets (queries) that are
       held out are trained on as well.
    4. A pair, and its other direction.

    A rule leaves something to find if it holds out at least half of the `fraction`, nine in ten queries then
    have two candidates, and its groups are no labels: those are fewer than the root of the number of pairs.

    Returns:
        The split, ``None`` if no rule leaves something to find.
    """
    wanted = round(fraction * len(pairs))
    for by, group_of, strict in _rules(pairs):
        sizes = np.bincount(group_of)
        small = np.flatnonzero(sizes[group_of] <= wanted)
        if (
            not len(small)
            or 2 * len(small) < wanted
            or (strict and np.count_nonzero(sizes) ** 2 <= len(pairs))
        ):
            continue
        held_out = np.zeros(len(pairs), dtype=bool)
        held_out[small] = hold_out(group_of[small], wanted / len(small), seed)
        if not held_out.all() and (count_candidates(pairs.take(held_out)) > 1).mean() >= 0.9:
            return Split(held_out, by)
    return None


def _rules(pairs: Pairs) -> Iterator[tuple[str, Ints, bool]]:
    """What is kept together, the groups that this makes, and whether they must not be labels."""
    queries, targets = pairs.queries, pairs.targets
    first = int(max(queries.max(), targets.max())) + 1
    images = [
        (reference, image + first)
        for reference, image in ((queries, pairs.query_images), (targets, pairs.target_images))
    ]
    links = [(reference[image >= first], image[image >= first]) for reference, image in images]
    joined = [np.concatenate(ends) for ends in zip((queries, targets), *links)]
    yield "connected queries, targets and images", connect(*joined)[queries], True
    yield "connected queries and targets", connect(queries, targets)[queries], True
    low, high = np.minimum(queries, targets), np.maximum(queries, targets)
    pair_of = np.unique(np.stack([low, high]), axis=1, return_inverse=True)[1].ravel()
    by_query = len(np.unique(queries)) >= len(np.unique(targets))
    name, reference = ("query", queries) if by_query else ("target", targets)
    yield name, connect(reference, pair_of + first)[reference], False
    yield "pair", pair_of, False


def connect(ends: Ints, others: Ints) -> Ints:
    """The connected component of each node of a graph, named after one of its nodes.

    Args:
        ends: (E,), one end of each edge.
        others: (E,), the other.

    Returns:
        (n,) for the nodes 0 to n - 1.
    """
    parent = np.arange(int(max(ends.max(), others.max())) + 1)
    while True:
        # hang the larger root of each edge below the smaller, then let every node point at its root
        roots, other_roots = parent[ends], parent[others]
        np.minimum.at(parent, roots, other_roots)
        np.minimum.at(parent, other_roots, roots)
        while (above := parent[parent]).tobytes() != parent.tobytes():
            parent = above
        if np.array_equal(parent[ends], parent[others]):
            return parent


def hold_out(group_of: Ints, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose whole groups at random until they hold `fraction` of the rows, or a little more."""
    sizes = np.bincount(group_of)
    order = np.random.default_rng(seed).permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    return np.isin(group_of, order[before < round(fraction * len(group_of))])


def no_distractors(queries: Ints, targets: Ints) -> dict[int, set[int]]:
    """Which targets are no wrong answers of each query: its own, and the query itself if it is a target."""
    pool = set(targets.tolist())
    found: dict[int, set[int]] = {query: {query} & pool for query in queries.tolist()}
    for query, target in zip(queries.tolist(), targets.tolist()):
        found[query].add(target)
    return found


def count_candidates(pairs: Pairs) -> Ints:
    """How many candidates there can be for each pair (N,): its target, and the wrong answers of its query."""
    right, pool = no_distractors(pairs.queries, pairs.targets), len(np.unique(pairs.targets))
    return np.array([pool - len(right[query]) + 1 for query in pairs.queries.tolist()], dtype=np.int64)
