"""The training order as a pure function of (seed, epoch, global batch index).

1. Every subset gets a number of rows (or, with one subset a batch, of batches): its share of the epoch,
   rounded so that the sum is exact.
2. The shares are shuffled: which subset each place of each batch belongs to.
3. Every subset fills its places with its rows in shuffled passes, so that no row comes twice before all of
   its subset have come once. In proportion to the sizes there is one pass: an epoch without repeats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler

from fanoise_lightning.data.subsets import check_names

__all__ = ["BatchSubsets", "MixingSampler", "Sampling", "epoch_order", "subset_weights"]

Sampling = Literal["proportional", "uniform"] | dict[str, float]
BatchSubsets = Literal["mixed", "single"]
Batch = list[tuple[int, int]]  # (subset index, row index)


def subset_weights(sampling: Sampling, names: Sequence[str], sizes: Sequence[int]) -> list[float]:
    """Turn the user's `sampling` into one weight per subset.

    Raises:
        ValueError: for an unknown word, an unknown or missing subset, or a weight that is negative or not
            finite.
    """
    if sampling == "proportional":
        return [float(size) for size in sizes]
    if sampling == "uniform":
        return [1.0] * len(names)
    if not isinstance(sampling, Mapping):
        raise ValueError(
            f"`sampling` must be 'proportional', 'uniform' or a dict subset -> weight, got {sampling!r}"
        )
    check_names(sampling, names, "subset in `sampling`")
    if missing := [name for name in names if name not in sampling]:
        raise ValueError(f"`sampling` gives no weight for subset `{missing[0]}` (0 leaves a subset out)")
    for name, weight in sampling.items():
        if isinstance(weight, bool) or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"`sampling`: the weight of `{name}` must be finite and >= 0, got {weight!r}")
    if not any(sampling.values()):
        raise ValueError("`sampling` gives every subset weight 0")
    return [float(sampling[name]) for name in names]


def _apportion(total: int, weights: Sequence[float]) -> NDArray[np.int64]:
    """Whole numbers in proportion to `weights` that sum to `total` (largest remainders)."""
    quotas = total * np.asarray(weights, dtype=np.float64) / np.sum(weights)
    counts = np.floor(quotas).astype(np.int64)
    largest = np.argsort(counts - quotas, kind="stable")[: total - counts.sum()]
    counts[largest] += 1
    return counts


def num_batches(sizes: Sequence[int], weights: Sequence[float], *, batch: int, single: bool) -> int:
    """Whole batches in one pass over the subsets that have a weight; the rest waits for another epoch."""
    used = [size for size, weight in zip(sizes, weights) if weight]
    return sum(size // batch for size in used) if single else sum(used) // batch


def epoch_order(
    sizes: Sequence[int], weights: Sequence[float], *, batch: int, single: bool, seed: int, epoch: int
) -> NDArray[np.int64]:
    """The whole order of an epoch.

    Args:
        sizes: rows of each subset.
        weights: share of each subset, on any scale.
        batch: rows of a global batch, over all ranks.
        single: take every batch from one subset.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        ``(batches, batch, 2)``: subset index and row index of each place.

    Example:
        >>> epoch_order([4, 2], [4, 2], batch=3, single=False, seed=0, epoch=0).shape
        (2, 3, 2)
    """
    random = np.random.default_rng([seed, epoch])
    batches = num_batches(sizes, weights, batch=batch, single=single)
    if not single:
        counts = _apportion(batches * batch, weights)
    elif list(weights) == list(sizes):
        counts = np.array([size // batch for size in sizes])  # rounding up would repeat rows
    else:
        counts = _apportion(batches, weights)
    subset_of = random.permutation(np.repeat(np.arange(len(sizes)), counts))
    if single:
        subset_of = np.repeat(subset_of, batch)
    row_of = np.empty_like(subset_of)
    for subset, size in enumerate(sizes):
        places = np.flatnonzero(subset_of == subset)
        passes = [random.permutation(size) for _ in range(math.ceil(len(places) / size))]
        row_of[places] = np.concatenate([np.empty(0, np.int64), *passes])[: len(places)]
    return np.stack([subset_of, row_of], axis=-1).reshape(batches, batch, 2)


class MixingSampler(DistributedSampler[Batch]):
    """Yields this rank's part of every global batch as ``[(subset index, row index), ...]``.

    For ``DataLoader(dataset, sampler=sampler, batch_size=None)``. It is a `DistributedSampler` because
    Lightning replaces any other sampler when there are several processes, and calls ``set_epoch`` on it.

    Args:
        dataset: what the rows are read from.
        sizes: rows of each subset.
        names: of the subsets, for the error messages.
        sampling: ``"proportional"`` to the sizes, ``"uniform"`` over subsets, or a weight for each.
        batch_subsets: ``"mixed"`` batches, or a ``"single"`` subset in each.
        batch_size: rows of one process's batch.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ValueError: if `sampling` or `batch_subsets` is wrong, or a global batch has more rows than there are.
    """

    def __init__(
        self,
        dataset: Dataset,
        sizes: Sequence[int],
        names: Sequence[str],
        *,
        sampling: Sampling = "proportional",
        batch_subsets: BatchSubsets = "mixed",
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_subsets not in ("mixed", "single"):
            raise ValueError(f"`batch_subsets` must be 'mixed' or 'single', got {batch_subsets!r}")
        super().__init__(dataset, num_replicas=world_size, rank=rank, seed=seed)
        self.sizes, self.single = list(sizes), batch_subsets == "single"
        self.weights = subset_weights(sampling, names, sizes)
        self.batch_size, self.global_batch = batch_size, batch_size * world_size
        self.start = 0
        """The first batch of the next pass: where a resumed run goes on."""
        used = [(name, size) for name, size, weight in zip(names, sizes, self.weights) if weight]
        smallest = min(used, key=lambda item: item[1]) if self.single else (None, sum(s for _, s in used))
        if smallest[1] < self.global_batch:
            where = f"subset `{smallest[0]}` has" if self.single else "the training subsets have"
            raise ValueError(
                f"{where} {smallest[1]} rows, fewer than a global batch of {self.global_batch} "
                f"(batch_size {batch_size} x {world_size} processes): lower `batch_size`"
                + (", leave the subset out, or use batch_subsets='mixed'" if self.single else "")
            )

    def __len__(self) -> int:
        return num_batches(self.sizes, self.weights, batch=self.global_batch, single=self.single)

    def __iter__(self) -> Iterator[Batch]:
        order = epoch_order(
            self.sizes,
            self.weights,
            batch=self.global_batch,
            single=self.single,
            seed=self.seed,
            epoch=self.epoch,
        )
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for batch in order[self.start :, mine]:
            yield [(int(subset), int(row)) for subset, row in batch]
