"""Rows become samples here, in the workers, and samples become batches of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from fanoise_lightning.data.images import ImageRoot, PictureError
from fanoise_lightning.data.mixing import Batch
from fanoise_lightning.data.records import EvalRows, Side, TrainRows
from fanoise_lightning.data.skipped import check_limit
from fanoise_lightning.sample import Collate, Pair, Sample

__all__ = ["EvalDataset", "PairCollate", "SideCollate", "TrainDataset"]


def _sample(side: Side, images: ImageRoot | None) -> Sample:
    if not side.image:
        return Sample(side.text)
    assert images is not None  # the data module checks that rows with pictures have a root
    return Sample(side.text, images.open(side.image))


class TrainDataset(Dataset):
    """The training pairs, read by whole batches.

    A pair with a picture that cannot be read is replaced by the next row of its subset, so that the batches
    of all processes stay equal in size.

    Args:
        subsets: the rows of each subset.
        images: the root of their pictures.
        allowed: how many rows may be skipped before the run stops.
    """

    def __init__(self, subsets: Sequence[TrainRows], images: ImageRoot | None, allowed: int) -> None:
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
                query, target, *negatives = (
                    _sample(side, self.images)
                    for side in (rows.queries[row], rows.targets[row], *rows.negatives(row))
                )
            except PictureError as error:
                skipped.append(f"{rows.where(row)}: {error}")
                # a wrong root breaks every row: do not walk through all of them
                check_limit(skipped, self.allowed, "training rows")
            else:
                return Pair(query, target, tuple(negatives), rows.name)
        raise PictureError(
            f"subset `{rows.name}`: not one row has pictures that can be read; the last: {skipped[-1]}"
        )


class EvalDataset(Dataset):
    """The unique sides of one evaluation subset, each to be encoded once.

    Args:
        rows: the sides, queries and candidates.
        images: the root of the pictures.

    Attributes:
        subset: name, meta-task, distribution and floors.
        queries: ``(Q,)`` int64, the side of each query.
        candidates: ``(Q, C)`` int64, the sides of its candidates: the ground truth first, ``-1`` behind the
            last.
    """

    def __init__(self, rows: EvalRows, images: ImageRoot | None) -> None:
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


@dataclass(frozen=True)
class PairCollate:
    """What `TrainDataset` reads -> ``{"query", "target", "negatives" (if there are any), "skipped"}``."""

    collate: Collate

    def __call__(self, read: tuple[list[Pair], list[str]]) -> dict[str, Any]:
        pairs, skipped = read
        batch: dict[str, Any] = {
            "query": self.collate([pair.query for pair in pairs]),
            "target": self.collate([pair.target for pair in pairs]),
        }
        if negatives := [sample for pair in pairs for sample in pair.negatives]:
            batch["negatives"] = self.collate(negatives)
        return {**batch, "skipped": skipped}


@dataclass(frozen=True)
class SideCollate:
    """What `EvalDataset` reads -> ``{"index": (n,), "inputs", "skipped"}``, without the broken sides."""

    collate: Collate

    def __call__(self, read: Sequence[tuple[int, Sample | str]]) -> dict[str, Any]:
        good = [(index, sample) for index, sample in read if isinstance(sample, Sample)]
        return {
            "index": torch.tensor([index for index, _ in good], dtype=torch.long),
            "inputs": self.collate([sample for _, sample in good]) if good else {},
            "skipped": [line for _, line in read if isinstance(line, str)],
        }
