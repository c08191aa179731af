"""What replaces pairs that cannot be used, so that the batches of all ranks stay equal in size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from fanoise_lightning.data.batches.mixing import Batch
from fanoise_lightning.sample import Pair
from fanoise_lightning.seeds import derive_seed

__all__ = ["Replacements", "repeat", "walk"]


class Replacements:
    """Rows that replace those of a batch that cannot be used.

    Only rows that no process has in its part of the global batch are drawn. All processes walk through them
    in the same order, and each takes its own share first, so that no two draw the same row; only a process
    whose whole share is broken turns to the shares of the others.

    Args:
        batch: of this process.
        sizes: rows of each subset.
    """

    def __init__(self, batch: Batch, sizes: Sequence[int]) -> None:
        self.batch, self.sizes = batch, sizes
        self._drawn: dict[int, Iterator[int]] = {}

    def of(self, subset: int) -> Iterator[int]:
        """Row indices of a subset. A row that was drawn does not come again."""
        if subset not in self._drawn:
            self._drawn[subset] = self._draw(subset)
        return self._drawn[subset]

    def _draw(self, subset: int) -> Iterator[int]:
        _, others, key, rank, world_size = self.batch
        taken = {row for at, row in self.batch.rows if at == subset}
        taken.update(others[others[:, 0] == subset, 1].tolist())

        def free() -> Iterator[int]:
            return (row for row in walk(self.sizes[subset], *key, subset) if row not in taken)

        yield from islice(free(), rank, None, world_size)
        yield from (row for place, row in enumerate(free()) if place % world_size != rank)


def walk(size: int, *key: int) -> Iterator[int]:
    """0 to ``size - 1``, each once, from a random start in random strides that depend on `key` alone."""
    random = np.random.default_rng(derive_seed(size, *key))
    start, stride = (int(number) for number in random.integers(1, size + 1, 2))
    while math.gcd(stride, size) > 1:
        stride += 1
    return ((start + step * stride) % size for step in range(size))


def repeat(pairs: Sequence[Pair | None], subsets: Sequence[object]) -> list[Pair]:
    """Fill the gaps in a batch with pairs of the batch, of the same subset if there are any.

    The pair with the fewest uses comes first. Pairs that appear twice get ``mask_pairs``: they are not each
    other's negatives.

    Args:
        pairs: of a batch, ``None`` in a gap; at least one is there.
        subsets: the subset of each, of a gap too.
    """
    source_of = {place: place for place, pair in enumerate(pairs) if pair is not None}
    uses = Counter(source_of.keys())
    for gap in [place for place, pair in enumerate(pairs) if pair is None]:
        costs = [
            (subsets[place] != subsets[gap], uses[place], (place - gap) % len(pairs), place) for place in uses
        ]
        source_of[gap] = min(costs)[-1]
        uses[source_of[gap]] += 1
    filled: list[Pair] = []
    for place in range(len(pairs)):
        pair = pairs[source_of[place]]
        assert pair is not None
        filled.append(replace(pair, mask_pairs=True) if uses[source_of[place]] > 1 else pair)
    return filled
