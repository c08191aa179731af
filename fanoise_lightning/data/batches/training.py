"""Training rows become pairs in the workers, and pairs become batches of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset

from fanoise_lightning.data.batches.mixing import Batch
from fanoise_lightning.data.batches.refusals import Read, Refusal
from fanoise_lightning.data.batches.replacements import Replacements, repeat
from fanoise_lightning.data.batches.skipped import SkipLimit, Skipped
from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.records import TrainRows
from fanoise_lightning.data.rows.references import Reference, identity
from fanoise_lightning.sample import Collate, Pair, Sample

__all__ = ["PairCollate", "TrainDataset", "open_pair"]

_ROOM = 2**26  # bytes of pairs of deferred images that a process keeps
_PAIR = 1500  # bytes of a pair without its texts


def open_pair(
    query: Reference,
    target: Reference,
    negatives: Sequence[Reference],
    store: ImageStore,
    *,
    subset: str,
    mask_pairs: bool,
) -> Pair:
    """The pair of a row, its images opened.

    Args:
        query: of the row.
        target: of the row.
        negatives: of the row.
        store: opens the images.
        subset: the name of the row's subset.
        mask_pairs: see `Pair`.

    Raises:
        ImageError: if an image cannot be opened.
    """
    return Pair(
        store.sample(query),
        store.sample(target),
        tuple(store.sample(negative) for negative in negatives),
        subset,
        target_id=identity(target),
        negative_ids=tuple(identity(negative) for negative in negatives),
        query_id=identity(query),
        mask_pairs=mask_pairs,
    )


class TrainDataset(Dataset):
    """The training pairs, read by whole batches.

    A pair with an image that cannot be used is replaced by another row of its subset, drawn at random, so
    that the batches of all processes stay equal in size. No row is drawn that a process has in the same
    global batch; if no other row can be used, a pair of the process's own batch is repeated. Replacements
    have `mask_pairs` set: right answers are not their negatives. Pairs of deferred images are small, and kept
    for the next epoch.

    Args:
        subsets: the rows of each subset.
        store: opens their images.
        limit: how many rows may be skipped before the run stops.
    """

    def __init__(self, subsets: Sequence[TrainRows], store: ImageStore, limit: SkipLimit) -> None:
        self.subsets, self.store, self.limit = list(subsets), store, limit
        self._opened: dict[tuple[int, int], Pair] = {}
        self._room = _ROOM

    def __len__(self) -> int:
        return sum(map(len, self.subsets))

    def __getitem__(self, batch: Batch) -> Read:
        """The pairs of a batch, and a line about each row that was skipped."""
        skipped: list[str] = []
        pairs = [self._open(subset, row, skipped) for subset, row in batch.rows]
        replacements = Replacements(batch, [len(rows) for rows in self.subsets])
        return self._fill(pairs, [subset for subset, _ in batch.rows], Read([], skipped, replacements), None)

    def replace(self, read: Read, refused: Mapping[int, str], refusal: Refusal) -> Read:
        """Replace the pairs that an encoder `refused`.

        Args:
            read: the batch.
            refused: why, by their places in the batch.
            refusal: says why the encoder refuses a pair, ``""`` if it does not.
        """
        origins: list[tuple[int, int]] = [pair.origin for pair in read.pairs]
        for place, why in refused.items():
            subset, row = origins[place]
            self._skip(subset, row, why, read.skipped)
        left = [None if place in refused else pair for place, pair in enumerate(read.pairs)]
        return self._fill(left, [subset for subset, _ in origins], read, refusal)

    def _fill(
        self, pairs: list[Pair | None], subsets: list[int], read: Read, refusal: Refusal | None
    ) -> Read:
        """Draw rows for the gaps."""
        assert read.replacements is not None
        for place, subset in enumerate(subsets):
            if pairs[place] is None:
                drawn = (
                    self._open(subset, row, read.skipped, refusal) for row in read.replacements.of(subset)
                )
                pairs[place] = next((replace(pair, mask_pairs=True) for pair in drawn if pair), None)
        names = [self.subsets[subset].name for subset in subsets]
        if missing := set(names) - {pair.subset for pair in pairs if pair is not None}:
            left = " that no other process has in its batch" if len(read.replacements.batch.others) else ""
            raise ImageError(
                f"subset `{min(missing)}`: not one row{left} has images that can be used; the last: "
                f"{read.skipped[-1]}"
            )
        return read._replace(pairs=repeat(pairs, names))

    def _open(self, subset: int, row: int, skipped: list[str], refusal: Refusal | None = None) -> Pair | None:
        pair = self._opened.get((subset, row))
        if pair is None:
            rows = self.subsets[subset]
            query, target, negatives = rows.queries[row], rows.targets[row], rows.negatives(row)
            masks = rows.mask_same_target
            try:
                pair = open_pair(query, target, negatives, self.store, subset=rows.name, mask_pairs=masks)
            except ImageError as error:
                self._skip(subset, row, str(error), skipped)
                return None
            pair = replace(pair, origin=(subset, row))
            if self.store.deferred:
                self._keep((subset, row), pair)
        if refusal is not None and (why := refusal(pair)):
            self._skip(subset, row, why, skipped)
            return None
        return pair

    def _keep(self, place: tuple[int, int], pair: Pair) -> None:
        size = _PAIR + sum(len(sample.text) for sample in (pair.query, pair.target, *pair.negatives))
        if size <= self._room:
            self._room -= size
            self._opened[place] = pair

    def _skip(self, subset: int, row: int, why: str, skipped: list[str]) -> None:
        rows = self.subsets[subset]
        skipped.append(Skipped(rows.name, f"{rows.where(row)}: {why}"))
        # a wrong root breaks every row: do not walk through all of them
        self.limit.check(skipped)


@dataclass(frozen=True)
class PairCollate:
    """Pairs that training data sets read -> ``{"query", "target", "negatives" (if any), "skipped"}``.

    The batch also has the numbers by which losses recognise right answers: ``{"query_id", "target_id",
    "negative_id" (if any), "mask_pairs"}``, see `Pair`.

    Args:
        collate: the encoder's.
        chunk_size: pairs in a chunk, or two numbers: for the queries, and for targets and hard negatives.
            Each chunk is collated separately, and a side is a list of inputs, because the inputs of some
            encoders cannot be cut apart afterwards.
        mask: tell which queries, targets and hard negatives are the same. If false, the numbers are -1,
            except those of pairs with `mask_pairs`.
        blind: the queries have lost their images, so that equal queries need not be the same.
    """

    collate: Collate
    chunk_size: int | tuple[int, int] | None = None
    mask: bool = True
    blind: bool = False

    def __call__(self, read: Read) -> dict[str, Any]:
        pairs = read.pairs
        sizes = self.chunk_size if isinstance(self.chunk_size, tuple) else (self.chunk_size, self.chunk_size)
        batch: dict[str, Any] = {
            "query": self._collate([pair.query for pair in pairs], sizes[0]),
            "target": self._collate([pair.target for pair in pairs], sizes[1]),
        }
        if negatives := [sample for pair in pairs for sample in pair.negatives]:
            batch["negatives"] = self._collate(negatives, sizes[1])
        return {**batch, **self._numbers(pairs), "skipped": read.skipped}

    def _numbers(self, pairs: list[Pair]) -> dict[str, torch.Tensor]:
        queries: list[int] = []
        targets: list[int] = []
        negatives: list[int] = []
        for pair in pairs:
            known = self.mask or pair.mask_pairs
            targets.append(pair.target_id if known else -1)
            queries.append(pair.query_id if known and not self.blind else -1)
            negatives += pair.negative_ids if known and pair.negative_ids else [-1] * len(pair.negatives)
        numbers = {
            "query_id": torch.tensor(queries),
            "target_id": torch.tensor(targets),
            "mask_pairs": torch.tensor([pair.mask_pairs for pair in pairs]),
        }
        if negatives:
            numbers["negative_id"] = torch.tensor(negatives)
        return numbers

    def _collate(self, samples: list[Sample], size: int | None) -> Any:
        if size is None:
            return self.collate(samples)
        return [self.collate(samples[start : start + size]) for start in range(0, len(samples), size)]
