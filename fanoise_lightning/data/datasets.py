"""Rows become samples here, in the workers, and samples become batches of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset

from fanoise_lightning.data.images import PictureError, Pictures
from fanoise_lightning.data.mixing import Batch
from fanoise_lightning.data.records import EvalRows, TrainRows
from fanoise_lightning.data.refusals import Read, Refusal, refusals
from fanoise_lightning.data.sides import Side, identity, unique_sides
from fanoise_lightning.data.skipped import Skipped, check_limit
from fanoise_lightning.data.stand_ins import StandIns, repeat
from fanoise_lightning.sample import Collate, Pair, Sample

__all__ = ["EvalDataset", "EvalSuite", "PairCollate", "SideCollate", "TrainDataset"]


def _sample(side: Side, images: Pictures) -> Sample:
    return Sample(side.text, images.open(side.image) if side.image != "" else None)


def open_pair(
    query: Side, target: Side, negatives: Sequence[Side], images: Pictures, *, subset: str, mask: bool
) -> Pair:
    """Open the pictures of a pair; with `mask`, other pairs that are known to be right are no negatives."""
    opened = [_sample(side, images) for side in (query, target, *negatives)]
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

    A pair with a picture that cannot be read is replaced by another row of its subset, drawn at random, so
    that the batches of all processes stay equal in size. No row is drawn that a process has in the same
    global batch; where no other can be read, a pair of the process's batch is repeated. Pairs that stand in
    for others are no negatives of what is the same.

    Args:
        subsets: the rows of each subset.
        images: opens their pictures.
        allowed: how many rows may be skipped before the run stops.
        in_subsets: how many of each subset, by its name.
    """

    def __init__(
        self,
        subsets: Sequence[TrainRows],
        images: Pictures,
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
            raise PictureError(
                f"subset `{min(missing)}`: not one row{left} has pictures that can be used; the last: "
                f"{read.skipped[-1]}"
            )
        return read._replace(pairs=repeat(pairs, names))

    def _open(self, subset: int, row: int, skipped: list[str], refusal: Refusal | None = None) -> Pair | None:
        rows = self.subsets[subset]
        try:
            sides = rows.queries[row], rows.targets[row], rows.negatives(row)
            pair = open_pair(*sides, self.images, subset=rows.name, mask=rows.mask_same_target)
            if refusal is None or not (why := refusal(pair)):
                return replace(pair, origin=(subset, row))
        except PictureError as error:
            why = str(error)
        self._skip(subset, row, why, skipped)
        return None

    def _skip(self, subset: int, row: int, why: str, skipped: list[str]) -> None:
        rows = self.subsets[subset]
        skipped.append(Skipped(rows.name, f"{rows.where(row)}: {why}"))
        # a wrong root breaks every row: do not walk through all of them
        check_limit(skipped, self.allowed, "training rows", self.in_subsets)


class EvalDataset(Dataset):
    """The unique sides of one evaluation subset, each to be encoded once.

    Args:
        rows: the sides, queries and candidates.
        images: opens the pictures.

    Attributes:
        subset: name, meta-task, distribution and floors.
        queries: ``(Q,)`` int64, the side of each query.
        candidates: ``(Q, C)`` int64, the sides of its candidates: the ground truth first, ``-1`` behind the
            last.
    """

    def __init__(self, rows: EvalRows, images: Pictures) -> None:
        self.subset, self.sides, self.images = rows.subset, rows.sides, images
        self.queries, self.candidates = torch.from_numpy(rows.queries), torch.from_numpy(rows.candidates)

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, index: int) -> tuple[int, Sample | str]:
        """The index and its sample, or a line about the picture that cannot be read."""
        try:
            return index, _sample(self.sides[index], self.images)
        except PictureError as error:
            return index, self.skip(index, str(error))

    def skip(self, index: int, why: str) -> Skipped:
        """The line about a side that cannot be used."""
        name = self.subset.name
        return Skipped(name, f"subset `{name}`, side {index}: {why}")


class EvalSuite(Dataset):
    """The unique sides of many evaluation subsets, each to be encoded once for all that share it.

    Those with a picture come first, long texts first: batches waste little padding, and where one is too
    large for the memory, the first is.

    Args:
        subsets: the subsets.

    Attributes:
        subsets: the same.
        numbers: of each subset, ``(n,)`` int64: the index in the suite of each of its n sides.
    """

    def __init__(self, subsets: Sequence[EvalDataset]) -> None:
        self.subsets = list(subsets)
        unique, codes = unique_sides(*(subset.sides for subset in self.subsets))
        sizes = [len(subset) for subset in self.subsets]
        self.numbers = list((len(unique) - 1 - torch.from_numpy(codes)).split(sizes))
        self._home = torch.empty(len(unique), 2, dtype=torch.long)  # a subset that has the side, and where
        for number, places in reversed(list(enumerate(self.numbers))):  # the first subset names it
            self._home[places, 0], self._home[places, 1] = number, torch.arange(len(places))

    def __len__(self) -> int:
        return len(self._home)

    def __getitem__(self, index: int) -> tuple[int, Sample | str]:
        """The index and its sample, or a line about the picture that cannot be read."""
        number, side = self._home[index].tolist()
        return index, self.subsets[number][side][1]

    @property
    def sizes(self) -> dict[str, int]:
        """How many sides each subset has, those that several share counted for the first."""
        counts = self._home[:, 0].bincount(minlength=len(self.subsets)).tolist()
        return {sides.subset.name: count for sides, count in zip(self.subsets, counts)}

    def skip(self, index: int, why: str) -> Skipped:
        """The line about a side that cannot be used."""
        number, side = self._home[index].tolist()
        return self.subsets[number].skip(side, why)


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
        blind: queries lost their pictures, and that they look the same says nothing.
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


@dataclass(frozen=True)
class SideCollate:
    """What evaluation data sets read -> ``{"index": (n,), "inputs", "skipped"}``, without broken sides.

    Args:
        collate: of the encoder.
        sides: the data set, which names the sides that the encoder refuses; without it they are an error.
    """

    collate: Collate
    sides: EvalDataset | EvalSuite | None = None

    def __call__(self, read: Sequence[tuple[int, Sample | str]]) -> dict[str, Any]:
        good = [(index, sample) for index, sample in read if isinstance(sample, Sample)]
        skipped = [line for _, line in read if isinstance(line, str)]
        inputs: dict[str, Any] | None = None
        while good and inputs is None:
            try:
                inputs = self.collate([sample for _, sample in good])
            except Exception as error:  # of any kind: whatever processors raise
                if self.sides is None:
                    raise
                refused = refusals(self.collate, [[sample] for _, sample in good], error)
                skipped += [self.sides.skip(good[place][0], why) for place, why in refused.items()]
                good = [side for place, side in enumerate(good) if place not in refused]
        index = torch.tensor([index for index, _ in good], dtype=torch.long)
        return {"index": index, "inputs": inputs or {}, "skipped": skipped}
