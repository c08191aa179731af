"""Rows become samples here, in the workers, and samples become batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from fanoise_lightning.data.images import PictureError, Pictures
from fanoise_lightning.data.mixing import Batch
from fanoise_lightning.data.records import EvalRows, TrainRows
from fanoise_lightning.data.sides import Side, target_id, unique_sides
from fanoise_lightning.data.skipped import check_limit
from fanoise_lightning.sample import Collate, Pair, Sample

__all__ = ["EvalDataset", "EvalSuite", "PairCollate", "SideCollate", "TrainDataset"]


def _sample(side: Side, images: Pictures) -> Sample:
    return Sample(side.text, images.open(side.image) if side.image else None)


def open_pair(
    query: Side, target: Side, negatives: Sequence[Side], images: Pictures, *, subset: str, mask: bool
) -> Pair:
    """Open the pictures of a pair; with `mask`, pairs of the same target are not each other's negatives."""
    opened = [_sample(side, images) for side in (query, target, *negatives)]
    number = target_id(target) if mask else -1
    return Pair(opened[0], opened[1], tuple(opened[2:]), subset, number)


class TrainDataset(Dataset):
    """The training pairs, read by whole batches.

    A pair with a picture that cannot be read is replaced by the next row of its subset, so that the batches
    of all processes stay equal in size.

    Args:
        subsets: the rows of each subset.
        images: opens their pictures.
        allowed: how many rows may be skipped before the run stops.
    """

    def __init__(self, subsets: Sequence[TrainRows], images: Pictures, allowed: int) -> None:
        self.subsets, self.images, self.allowed = list(subsets), images, allowed

    def __len__(self) -> int:
        return sum(map(len, self.subsets))

    def __getitem__(self, batch: Batch) -> tuple[list[Pair], list[str]]:
        """The pairs at ``[(subset index, row index), ...]``, and a line about each row that was skipped."""
        skipped: list[str] = []
        return [self._pair(self.subsets[subset], row, skipped) for subset, row in batch], skipped

    def _pair(self, rows: TrainRows, first: int, skipped: list[str]) -> Pair:
        for step in range(len(rows)):
            row = (first + step) % len(rows)
            try:
                sides = rows.queries[row], rows.targets[row], rows.negatives(row)
                return open_pair(*sides, self.images, subset=rows.name, mask=rows.mask_same_target)
            except PictureError as error:
                skipped.append(f"{rows.where(row)}: {error}")
                # a wrong root breaks every row: do not walk through all of them
                check_limit(skipped, self.allowed, "training rows")
        raise PictureError(
            f"subset `{rows.name}`: not one row has pictures that can be read; the last: {skipped[-1]}"
        )


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
            return index, f"subset `{self.subset.name}`, side {index}: {error}"


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


@dataclass(frozen=True)
class PairCollate:
    """What `TrainDataset` reads -> ``{"query", "target", "negatives" (if any), "target_id", "skipped"}``.

    Args:
        collate: of the encoder.
        chunk_size: pairs in a chunk, or one number for the queries and one for targets and negatives. Each
            chunk is collated by itself, so that a side is a list of inputs: those of some encoders cannot be
            cut apart afterwards.
    """

    collate: Collate
    chunk_size: int | tuple[int, int] | None = None

    def __call__(self, read: tuple[list[Pair], list[str]]) -> dict[str, Any]:
        pairs, skipped = read
        sizes = self.chunk_size if isinstance(self.chunk_size, tuple) else (self.chunk_size, self.chunk_size)
        batch: dict[str, Any] = {
            "query": self._collate([pair.query for pair in pairs], sizes[0]),
            "target": self._collate([pair.target for pair in pairs], sizes[1]),
        }
        if negatives := [sample for pair in pairs for sample in pair.negatives]:
            batch["negatives"] = self._collate(negatives, sizes[1])
        # There on every rank, whatever it holds: the loss gathers it.
        batch["target_id"] = torch.tensor([pair.target_id for pair in pairs])
        return {**batch, "skipped": skipped}

    def _collate(self, samples: list[Sample], size: int | None) -> Any:
        if size is None:
            return self.collate(samples)
        return [self.collate(samples[start : start + size]) for start in range(0, len(samples), size)]


@dataclass(frozen=True)
class SideCollate:
    """What evaluation data sets read -> ``{"index": (n,), "inputs", "skipped"}``, without broken sides."""

    collate: Collate

    def __call__(self, read: Sequence[tuple[int, Sample | str]]) -> dict[str, Any]:
        good = [(index, sample) for index, sample in read if isinstance(sample, Sample)]
        return {
            "index": torch.tensor([index for index, _ in good], dtype=torch.long),
            "inputs": self.collate([sample for _, sample in good]) if good else {},
            "skipped": [line for _, line in read if isinstance(line, str)],
        }
