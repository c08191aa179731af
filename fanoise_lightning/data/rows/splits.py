"""Which pairs are held out for validation, and how much of them is trained on nevertheless."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pairs", "Right", "Split", "count_candidates", "draw_candidates", "hold_out", "split"]

Ints = NDArray[np.int64]
NO_PAIRS: tuple[Ints, Ints] = (np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class Pairs:
    """N pairs as numbers: equal numbers mean equal references, or equal images.

    Args:
        queries: (N,), references.
        targets: (N,), references, numbered together with the queries.
        query_images: (N,), -1 for none.
        target_images: (N,), numbered together with the images of the queries, -1 for none.
    """

    queries: Ints
    targets: Ints
    query_images: Ints
    target_images: Ints

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, index: Ints | NDArray[np.bool_]) -> Pairs:
        """The pairs at `index`."""
        return Pairs(
            self.queries[index], self.targets[index], self.query_images[index], self.target_images[index]
        )

    def seen(self, trained: Pairs) -> dict[str, tuple[int, int]]:
        """How many of the different queries, targets and images are in `trained` too, and of how many.

        The role does not matter: a query may have been trained on as a target.
        """
        references = np.concatenate([trained.queries, trained.targets])
        parts = {
            "queries": (self.queries, references),
            "targets": (self.targets, references),
            "images": (self._images, trained._images),
        }
        counts = {}
        for name, (numbers, theirs) in parts.items():
            mine = np.unique(numbers[numbers >= 0])
            counts[name] = (int(np.isin(mine, theirs).sum()), len(mine))
        return counts

    def known(self, trained: Pairs) -> tuple[Ints, Ints]:
        """The queries and targets of the pairs in `trained` whose query and target are both in these pairs.

        Among the targets of these pairs, they are right answers too.
        """
        both = np.isin(trained.queries, self.queries) & np.isin(trained.targets, self.targets)
        return trained.queries[both], trained.targets[both]

    @property
    def _images(self) -> Ints:
        return np.concatenate([self.query_images, self.target_images])


@dataclass(frozen=True)
class Split:
    """What is held out.

    Args:
        held_out: (N,), which pairs.
        by: what was kept together.
    """

    held_out: NDArray[np.bool_]
    by: str


def split(pairs: Pairs, fraction: float, seed: int) -> Split | None:
    """Hold out a `fraction` of the pairs, by the strictest rule that leaves something to find.

    1. Pairs that are connected by a query, a target or an image stay together: nothing is on both sides.
    2. Pairs that are connected by a query or a target stay together.
    3. All pairs of a query stay together (of a target, if there are fewer queries than targets), and both
       directions of a pair. This is for labels and the like, which connect most pairs: held-out targets
       (queries) are then trained on too.
    4. Both directions of a pair stay together.

    A rule leaves something to find if it holds out at least half of the `fraction`, if nine in ten held-out
    queries have two candidates, and under the first two rules if its groups are not labels, that is, if they
    are more than the square root of the number of pairs.

    Returns:
        The split, ``None`` if no rule leaves something to find.
    """
    wanted = round(fraction * len(pairs))
    for by, group_of, strict in _rules(pairs):
        sizes = np.bincount(group_of)
        small = np.flatnonzero(sizes[group_of] <= wanted)
        are_labels = strict and np.count_nonzero(sizes) ** 2 <= len(pairs)
        if not len(small) or 2 * len(small) < wanted or are_labels:
            continue
        held_out = np.zeros(len(pairs), dtype=bool)
        held_out[small] = hold_out(group_of[small], wanted / len(small), seed)
        if held_out.all():
            continue
        mine, others = pairs.take(held_out), pairs.take(~held_out)
        if (count_candidates(mine, mine.known(others)) > 1).mean() >= 0.9:
            return Split(held_out, by)
    return None


def _rules(pairs: Pairs) -> Iterator[tuple[str, Ints, bool]]:
    """What is kept together, the group of each pair, and whether the groups must not be labels."""
    queries, targets = pairs.queries, pairs.targets
    # a graph: its nodes are the references, followed by images, or by pairs in both directions
    first = int(max(queries.max(), targets.max())) + 1
    references = np.concatenate([queries, targets])
    images = np.concatenate([pairs.query_images, pairs.target_images])
    has_image = images >= 0
    ends = np.concatenate([queries, references[has_image]])
    others = np.concatenate([targets, images[has_image] + first])
    yield "connected queries, targets and images", connect(ends, others)[queries], True
    yield "connected queries and targets", connect(queries, targets)[queries], True
    low, high = np.minimum(queries, targets), np.maximum(queries, targets)
    pair_of = np.unique(low * first + high, return_inverse=True)[1]
    by_query = len(np.unique(queries)) >= len(np.unique(targets))
    name, kept = ("query", queries) if by_query else ("target", targets)
    yield name, connect(kept, pair_of + first)[kept], False
    yield "pair", pair_of, False


def connect(ends: Ints, others: Ints) -> Ints:
    """The connected component of each node of a graph, named after one of its nodes.

    Args:
        ends: (E,), one end of each edge.
        others: (E,), the other end.

    Returns:
        (n,) for the nodes 0 to n - 1.
    """
    parent = np.arange(int(max(ends.max(), others.max())) + 1)
    while True:
        # hang the larger root of each edge below the smaller one, then let every node point at its root
        roots, other_roots = parent[ends], parent[others]
        np.minimum.at(parent, roots, other_roots)
        np.minimum.at(parent, other_roots, roots)
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]
        if np.array_equal(parent[ends], parent[others]):
            return parent


def hold_out(group_of: Ints, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose whole groups at random until they hold `fraction` of the rows, or a little more."""
    sizes = np.bincount(group_of)
    order = np.random.default_rng(seed).permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    return np.isin(group_of, order[before < round(fraction * len(group_of))])


def count_candidates(pairs: Pairs, known: tuple[Ints, Ints] = NO_PAIRS) -> Ints:
    """How many candidates each pair can have, (N,): its target, and the wrong answers of its query.

    Args:
        pairs: the held-out pairs.
        known: further right answers, see `Pairs.known`.
    """
    right = Right(pairs.queries, pairs.targets, known)
    return len(np.unique(pairs.targets)) - right.counts(pairs.queries) + 1


class Right:
    """The targets that are not wrong answers of each query: its own, and the query if it is a target.

    Args:
        queries: (N,), see `Pairs`.
        targets: (N,), see `Pairs`.
        known: further right answers among the targets: (M,) queries, (M,) targets.
    """

    def __init__(self, queries: Ints, targets: Ints, known: tuple[Ints, Ints] = NO_PAIRS) -> None:
        both = np.intersect1d(queries, targets)
        ends = np.concatenate([queries, known[0], both])
        others = np.concatenate([targets, known[1], both])
        # one number for each query and answer, sorted: lists of them would take gigabytes
        self._base = int(max(queries.max(), targets.max())) + 1
        self._keys = np.unique(ends * self._base + others)

    def _bounds(self, queries: Ints) -> tuple[Ints, Ints]:
        start = queries * self._base
        return np.searchsorted(self._keys, start), np.searchsorted(self._keys, start + self._base)

    def counts(self, queries: Ints) -> Ints:
        """How many targets are not wrong answers of each query."""
        first, end = self._bounds(queries)
        return end - first

    def of(self, query: int) -> Ints:
        """The targets that are not wrong answers of a query, sorted."""
        first, end = self._bounds(np.array([query]))
        return self._keys[first[0] : end[0]] % self._base


def draw_candidates(
    queries: Ints, targets: Ints, count: int, seed: int, known: tuple[Ints, Ints] = NO_PAIRS
) -> Ints:
    """The candidates of each query: its target, and at most ``count - 1`` wrong answers.

    The query itself is not among them: in a file with both directions of the pairs it is a target too, and
    nothing is more similar to it.

    Args:
        queries: (N,), see `Pairs`.
        targets: (N,), see `Pairs`.
        count: candidates of a query.
        seed: of the draw.
        known: right answers by other pairs, which are no candidates, see `Pairs.known`.

    Returns:
        ``(N, C)``, the target in column 0, ``-1`` after the last.
    """
    random = np.random.default_rng(seed)
    pool, right = np.unique(targets), Right(queries, targets, known)
    size = min(count, len(pool))
    candidates = np.full((len(queries), size), -1, dtype=np.int64)
    for place, (query, target) in enumerate(zip(queries.tolist(), targets.tolist())):
        excluded = right.of(query)
        drawn = random.choice(pool, min(len(pool), count + len(excluded)), replace=False)
        wrong = drawn[~np.isin(drawn, excluded)][: size - 1]
        candidates[place, 0] = target
        candidates[place, 1 : 1 + len(wrong)] = wrong
    widest = int((candidates >= 0).sum(axis=1).max(initial=0))
    return candidates[:, :widest]
