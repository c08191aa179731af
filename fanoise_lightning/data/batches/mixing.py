"""The training order as a pure function of (seed, epoch, global batch index).

1. An epoch is a sequence of blocks of equal length, each from one subset: single rows for mixed batches,
   whole batches for one subset a batch, or anything in between. Every subset gets a number of blocks: its
   share of the epoch, rounded so that the sum is exact.
2. The blocks are shuffled, which decides the subset of each place of each batch.
3. Every subset fills its places with its rows in shuffled passes, so that no row repeats before all rows
   of its subset have appeared once. In proportion to the sizes there is one pass: an epoch without repeats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler

from fanoise_lightning._checks import check_names

__all__ = ["Batch", "BatchSubsets", "MixingSampler", "Sampling", "epoch_order", "subset_weights"]

Sampling = Literal["proportional", "uniform"] | float | dict[str, float]
BatchSubsets = Literal["mixed", "single"] | int


class Batch(NamedTuple):
    """One process's part of a global batch.

    Args:
        rows: its rows, ``[(subset index, row index), ...]``.
        others: ``(n, 2)``, the rows of the other processes, in the same form.
        key: numbers that are the same on all processes and differ between batches.
        rank: of the process.
        world_size: number of processes.
    """

    rows: list[tuple[int, int]]
    others: NDArray[np.int64] = np.empty((0, 2), np.int64)
    key: tuple[int, ...] = ()
    rank: int = 0
    world_size: int = 1


def subset_weights(sampling: Sampling, names: Sequence[str], sizes: Sequence[int]) -> list[float]:
    """Turn the user's `sampling` into one weight per subset.

    Args:
        sampling: ``"proportional"`` to the sizes, ``"uniform"``, a temperature T (weight ``size ** (1 / T)``:
            1 is proportional, and larger values are closer to uniform), or a weight for each subset.
        names: of the subsets.
        sizes: rows of each subset.

    Raises:
        ValueError: for an unknown word, an unknown or missing subset, a weight that is negative or not
            finite, only zero weights, or a temperature that is not positive.

    Example:
        >>> subset_weights(2.0, ["a", "b"], [100, 25])  # relative to the largest
        [1.0, 0.5]
    """
    if sampling == "proportional":
        return [float(size) for size in sizes]
    if sampling == "uniform":
        return [1.0] * len(names)
    if isinstance(sampling, (int, float)) and not isinstance(sampling, bool):
        if not sampling > 0:
            raise ValueError(f"`sampling`: the temperature must be greater than 0, got {sampling!r}")
        # a small temperature is a high power: powers of shares cannot overflow, and T = 1 must stay exact
        largest = 1 if sampling == 1 else max(sizes)
        return [(size / largest) ** (1 / sampling) for size in sizes]
    if not isinstance(sampling, Mapping):
        raise ValueError(
            "`sampling` must be 'proportional', 'uniform', a temperature or a dict subset -> weight, "
            f"got {sampling!r}"
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
    quotas = total * np.asarray(weights, dtype=np.float64) / (np.sum(weights) or 1)  # no rows: no batches
    counts = np.floor(quotas).astype(np.int64)
    largest = np.argsort(counts - quotas, kind="stable")[: total - counts.sum()]
    counts[largest] += 1
    return counts


def num_batches(sizes: Sequence[int], weights: Sequence[float], *, batch: int, block: int) -> int:
    """Whole batches of whole blocks in one pass over the subsets that have a weight.

    Rows that are left over wait for another epoch.
    """
    blocks = sum(size // block for size, weight in zip(sizes, weights) if weight)
    return blocks * block // batch


def epoch_order(
    sizes: Sequence[int], weights: Sequence[float], *, batch: int, block: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """The whole order of an epoch.

    Args:
        sizes: rows of each subset.
        weights: share of each subset, on any scale.
        batch: rows of a global batch, over all ranks.
        block: rows that come from one subset together; divides `batch`.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        ``(batches, batch, 2)``: subset index and row index of each place.

    Example:
        >>> epoch_order([4, 2], [4, 2], batch=3, block=1, seed=0, epoch=0).shape
        (2, 3, 2)
    """
    random = np.random.default_rng([seed, epoch])
    batches = num_batches(sizes, weights, batch=batch, block=block)
    # proportional means to the whole blocks of each subset, not to its rows: rounding up would repeat rows
    shares = [size // block for size in sizes] if list(weights) == list(sizes) else weights
    counts = _apportion(batches * batch // block, shares)
    subset_of = np.repeat(random.permutation(np.repeat(np.arange(len(sizes)), counts)), block)
    row_of = np.empty_like(subset_of)
    for subset, size in enumerate(sizes):
        places = np.flatnonzero(subset_of == subset)
        passes = [random.permutation(size) for _ in range(math.ceil(len(places) / size))]
        row_of[places] = np.concatenate([np.empty(0, np.int64), *passes])[: len(places)]
    return np.stack([subset_of, row_of], axis=-1).reshape(batches, batch, 2)


class MixingSampler(DistributedSampler[Batch]):
    """Yields this rank's part of every global batch.

    For ``DataLoader(dataset, sampler=sampler, batch_size=None)``. It is a `DistributedSampler` because
    Lightning replaces any other sampler when there are several processes, and calls ``set_epoch`` on it.

    Args:
        dataset: where the rows are read from.
        sizes: rows of each subset.
        names: of the subsets, for messages.
        sampling: ``"proportional"`` to the sizes, ``"uniform"`` over subsets, a temperature between the two
            (see `subset_weights`), or a weight for each.
        batch_subsets: ``"mixed"`` batches; a ``"single"`` subset in each; or a number k: batches interleaved
            from blocks of k rows of one subset. The last two have the same subsets in the same places on
            every rank, so that a block has k x `world_size` rows over all ranks.
        batch_size: rows of one process's batch.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ValueError: if `sampling` or `batch_subsets` is wrong, or if there are fewer rows than a global batch
            or a block needs.

    Attributes:
        start: the first batch of the next pass; a resumed run sets it.
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
        super().__init__(dataset, num_replicas=world_size, rank=rank, seed=seed)
        self.sizes, self.weights = list(sizes), subset_weights(sampling, names, sizes)
        self.batch_size, self.global_batch = batch_size, batch_size * world_size
        mixed = batch_subsets == "mixed"
        # rows of a block on one rank, and over all ranks
        self.local_block = batch_size if mixed else _local_block(batch_subsets, batch_size)
        self.block = 1 if mixed else self.local_block * world_size
        self.start = 0
        self._check_rows(names)

    def _check_rows(self, names: Sequence[str]) -> None:
        used = [(name, size) for name, size, weight in zip(names, self.sizes, self.weights) if weight]
        sizes = f"(batch_size {self.batch_size} x {self.num_replicas} processes)"
        name, smallest = min(used, key=lambda item: item[1])
        if smallest < self.block:
            what = "global batch" if self.block == self.global_batch else "block"
            raise ValueError(
                f"subset `{name}` has {smallest} rows, fewer than a {what} of {self.block} {sizes}: lower "
                "`batch_size` or `batch_subsets`, leave the subset out, or use batch_subsets='mixed'"
            )
        if not len(self):
            total = sum(size // self.block * self.block for _, size in used)
            blocks = "" if self.block == 1 else f" in whole blocks of {self.block}"
            raise ValueError(
                f"the training subsets have {total} rows{blocks}, fewer than a global batch of "
                f"{self.global_batch} {sizes}: lower `batch_size`"
            )

    def __len__(self) -> int:
        return num_batches(self.sizes, self.weights, batch=self.global_batch, block=self.block)

    def __iter__(self) -> Iterator[Batch]:
        order, epoch = self._order(), self.epoch
        for number in range(self.start, len(order)):
            blocks = order[number]  # (blocks, ranks, rows, 2)
            rows = [(int(subset), int(row)) for subset, row in blocks[:, self.rank].reshape(-1, 2)]
            others = np.delete(blocks, self.rank, axis=1).reshape(-1, 2)
            yield Batch(rows, others, (self.seed, epoch, number), self.rank, self.num_replicas)

    def _order(self) -> NDArray[np.int64]:
        """The epoch: ``(batches, blocks, ranks, rows of a block on one rank, 2)``."""
        order = epoch_order(
            self.sizes,
            self.weights,
            batch=self.global_batch,
            block=self.block,
            seed=self.seed,
            epoch=self.epoch,
        )
        return order.reshape(len(order), -1, self.num_replicas, self.local_block, 2)


def _local_block(batch_subsets: BatchSubsets, batch_size: int) -> int:
    """How many rows of one process's batch come from one subset together."""
    if batch_subsets == "single":
        return batch_size
    is_number = isinstance(batch_subsets, int) and not isinstance(batch_subsets, bool)
    if not is_number or batch_subsets < 1 or batch_size % batch_subsets:  # type: ignore[operator]
        raise ValueError(
            f"`batch_subsets` must be 'mixed', 'single', or a number that divides `batch_size` {batch_size}, "
            f"got {batch_subsets!r}"
        )
    return batch_subsets  # type: ignore[return-value]
