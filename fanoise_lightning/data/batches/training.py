"""Training rows become pairs in the workers, and pairs become batches of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset

from fanoise_lightning.data.batches.mixing import Batch
from fanoise_lightning.data.batches.refusals import Read, Refusal
from fanoise_lightning.data.batches.skipped import Skipped, check_limit
from fanoise_lightning.data.batches.stand_ins import StandIns, repeat
from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.records import TrainRows
from fanoise_lightning.data.rows.references import Reference, identity
from fanoise_lightning.sample import Collate, Pair, Sample

__all__ = ["PairCollate", "TrainDataset", "open_pair"]


def open_pair(
    query: Reference,
    target: Reference,
    negatives: Sequence[Reference],
    images: ImageStore,
    *,
    subset: str,
    mask: bool,
) -> Pair:
    """Open the images of a pair; with `mask`, other pairs that are known to be right are no negatives."""
    opened = [images.sample(reference) for reference in (query, target, *negatives)]
    return Pair(
        opened[0],
        opened[1],
        tuple(opened[2:]),
        subset,
        target_id=identity(target),
        negative_ids=tuple(map(identity, negatives)),
        query_id=identity(query),
        mask_pairs=mask,
    )


class TrainDataset(Dataset):
    """The training pairs, read by whole batches.

    A pair with an image that cannot be read is replaced by another row of its subset, drawn at random, so
    that the batches of all processes stay equal in size. No row is drawn that a process has in the same
    global batch; where no other can be read, a pair of the process's batch is repeated. Pairs that stand in
    for others are no negatives of what is the same.

    Args:
        subsets: the rows of each subset.
        images: opens their images.
        allowed: how many rows may be skipped before the run stops.
        in_subsets: how many of each subset, by its name.
    """

    def __init__(
        self,
        subsets: Sequence[TrainRows],
        images: ImageStore,
        allowed: int,
        in_subsets: Mapping[str, int] | None = None,
    ) -> None:
        self.subsets, self.images = list(subsets), images
        self.allowed, self.in_subsets = allowed, in_subsets

    def __len__(self) -> int:
        return sum(map(len, self.subsets))

    def __getitem__(self, batch: Batch) -> Read:
        """The pairs of a batch, and a line about each row that was skipped."""
        skipped: list[str] = []
        pairs = [self._open(subset, row, skipped) for subset, row in batch.rows]
        stand_ins = StandIns(batch, list(map(len, self.subsets)))
        return self._fill(pairs, [subset for subset, _ in batch.rows], Read([], skipped, stand_ins), None)

    def replace(self, read: Read, refused: Mapping[int, str], refusal: Refusal) -> Read:
        """Put other pairs in the places of those that an encoder `refused`.

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
        assert read.stand_ins is not None
        for place, subset in enumerate(subsets):
            if pairs[place] is None:
                drawn = (self._open(subset, row, read.skipped, refusal) for row in read.stand_ins.of(subset))
                pairs[place] = next((replace(pair, mask_pairs=True) for pair in drawn if pair), None)
        names = [self.subsets[subset].name for subset in subsets]
        if missing := set(names) - {pair.subset for pair in pairs if pair is not None}:
            left = " that no other process has in its batch" if len(read.stand_ins.batch.others) else ""
            raise ImageError(
                f"subset `{min(missing)}`: not one row{left} has images that can be used; the last: "
                f"{read.skipped[-1]}"
            )
        return read._replace(pairs=repeat(pairs, names))

    def _open(self, subset: int, row: int, skipped: list[str], refusal: Refusal | None = None) -> Pair | None:
        rows = self.subsets[subset]
        try:
            references = rows.queries[row], rows.targets[row], rows.negatives(row)
            pair = open_pair(*references, self.images, subset=rows.name, mask=rows.mask_same_target)
            if refusal is None or not (why := refusal(pair)):
                return replace(pair, origin=(subset, row))
        except ImageError as error:
            why = str(error)
        self._skip(subset, row, why, skipped)
        return None

    def _skip(self, subset: int, row: int, why: str, skipped: list[str]) -> None:
        rows = self.subsets[subset]
        skipped.append(Skipped(rows.name, f"{rows.where(row)}: {why}"))
        # a wrong root breaks every row: do not walk through all of them
        check_limit(skipped, self.allowed, "training rows", self.in_subsets)


@dataclass(frozen=True)
class PairCollate:
    """What `TrainDataset` reads -> ``{"query", "target", "negatives" (if any), "skipped"}``, and the numbers
    ``{"query_id", "target_id", "negative_id" (if any), "mask_pairs"}``, which losses tell right answers by.

    Args:
        collate: of the encoder.
        chunk_size: pairs in a chunk, or one number for the queries and one for targets and negatives. Each
            chunk is collated by itself, so that a side is a list of inputs: those of some encoders cannot be
            cut apart afterwards.
        mask: tell what is the same. If false, -1 for all but pairs with `mask_pairs`.
        blind: queries lost their images, and that they look the same says nothing.
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
        target: list[int] = []
        query: list[int] = []
        hard: list[int] = []
        for pair in pairs:
            told = self.mask or pair.mask_pairs
            target.append(pair.target_id if told else -1)
            query.append(pair.query_id if told and not self.blind else -1)
            hard += pair.negative_ids if told and pair.negative_ids else [-1] * len(pair.negatives)
        mask_pairs = torch.tensor([pair.mask_pairs for pair in pairs])
        numbers = {
            "query_id": torch.tensor(query),
            "target_id": torch.tensor(target),
            "mask_pairs": mask_pairs,
        }
        return {**numbers, "negative_id": torch.tensor(hard)} if hard else numbers

    def _collate(self, samples: list[Sample], size: int | None) -> Any:
        if size is None:
            return self.collate(samples)
        return [self.collate(samples[start : start + size]) for start in range(0, len(samples), size)]
