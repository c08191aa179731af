"""What evaluation has to encode, each text and image once, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from fanoise_lightning.data.batches.refusals import refusals
from fanoise_lightning.data.batches.skipped import Skipped
from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.records import EvalRows
from fanoise_lightning.data.rows.references import unique_references
from fanoise_lightning.sample import Collate, Sample

__all__ = ["EvalDataset", "EvalSuite", "ItemCollate"]


class EvalDataset(Dataset):
    """The unique items of one evaluation subset, each to be encoded once.

    Args:
        rows: the items, queries and candidates.
        store: opens the images.

    Attributes:
        subset: name, meta-task, distribution and floors.
        queries: ``(Q,)`` int64, the item of each query.
        candidates: ``(Q, C)`` int64, the items of its candidates: the right answers first, ``-1`` after the
            last.
        num_right: ``(Q,)`` int64, how many of them are right; ``None`` for one of each query.
        catalogue: ``(N,)`` int64, further candidates of every query; ``None`` for none.
        excluded: ``(Q, E)`` int64, items of the catalogue that are no candidates of a query; ``None`` for
            none.
    """

    def __init__(self, rows: EvalRows, store: ImageStore) -> None:
        self.subset, self.items, self.store = rows.subset, rows.items, store
        self.queries, self.candidates = torch.from_numpy(rows.queries), torch.from_numpy(rows.candidates)
        self.num_right = None if rows.num_right is None else torch.from_numpy(rows.num_right)
        self.catalogue = None if rows.catalogue is None else torch.from_numpy(rows.catalogue)
        self.excluded = None if rows.excluded is None else torch.from_numpy(rows.excluded)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, Sample | str]:
        """The index and its sample, or a line about the image that cannot be used."""
        try:
            return index, self.store.sample(self.items[index])
        except ImageError as error:
            return index, self.skip(index, str(error))

    def skip(self, index: int, why: str) -> Skipped:
        """The line about an item that cannot be used."""
        name = self.subset.name
        return Skipped(name, f"subset `{name}`, item {index}: {why}")


class EvalSuite(Dataset):
    """The unique items of many evaluation subsets, each to be encoded once for all subsets that share it.

    Items with an image come first, and long texts before short ones: batches waste little padding, and a
    batch that is too large for the memory is the first.

    Args:
        subsets: the items of each subset.

    Attributes:
        subsets: the same.
        numbers: of each subset, ``(n,)`` int64: the index in the suite of each of its n items.
    """

    def __init__(self, subsets: Sequence[EvalDataset]) -> None:
        self.subsets = list(subsets)
        unique, codes = unique_references(*(subset.items for subset in self.subsets))
        in_suite = len(unique) - 1 - torch.from_numpy(codes)  # the reverse order: images and long texts first
        self.numbers = list(in_suite.split([len(subset) for subset in self.subsets]))
        # the first subset that has an item, and the item's index there
        self._home = torch.empty(len(unique), 2, dtype=torch.long)
        for number, items in reversed(list(enumerate(self.numbers))):
            self._home[items, 0] = number
            self._home[items, 1] = torch.arange(len(items))

    def __len__(self) -> int:
        return len(self._home)

    def __getitem__(self, index: int) -> tuple[int, Sample | str]:
        """The index and its sample, or a line about the image that cannot be used."""
        number, item = self._home[index].tolist()
        return index, self.subsets[number][item][1]

    @property
    def digest(self) -> str:
        """A fingerprint of all queries and candidates: equal for suites that ask the same, in hex."""
        digest = sha256()
        for part in self.subsets:
            head = (part.subset.name, tuple(part.candidates.shape), len(part))
            digest.update(repr(head).encode())
            digest.update(part.queries.numpy().tobytes() + part.candidates.numpy().tobytes())
            if part.num_right is not None and part.num_right.max() > 1:
                digest.update(part.num_right.numpy().tobytes())
            if part.catalogue is not None:
                digest.update(part.catalogue.numpy().tobytes())
            if part.excluded is not None:
                digest.update(part.excluded.numpy().tobytes())
            for reference in part.items.to_list():
                digest.update(repr(tuple(reference)).encode())
        return digest.hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        """How many items each subset has; an item that several share counts for the first."""
        counts = self._home[:, 0].bincount(minlength=len(self.subsets)).tolist()
        return {dataset.subset.name: count for dataset, count in zip(self.subsets, counts)}

    def skip(self, index: int, why: str) -> Skipped:
        """The line about an item that cannot be used."""
        number, item = self._home[index].tolist()
        return self.subsets[number].skip(item, why)


class NamesSkipped(Protocol):
    """A data set that says in its own words which item cannot be used, and why."""

    def skip(self, index: int, why: str) -> str:
        """The line about an item that cannot be used."""


@dataclass(frozen=True)
class ItemCollate:
    """Items that evaluation reads -> ``{"index": (n,), "inputs", "skipped"}``, without broken ones.

    Args:
        collate: the encoder's.
        dataset: names the items that the encoder refuses; without it, a refusal is an error.
    """

    collate: Collate
    dataset: NamesSkipped | None = None

    def __call__(self, read: Sequence[tuple[int, Sample | str]]) -> dict[str, Any]:
        good = [(index, sample) for index, sample in read if isinstance(sample, Sample)]
        skipped = [line for _, line in read if isinstance(line, str)]
        inputs: dict[str, Any] | None = None
        while good and inputs is None:
            try:
                inputs = self.collate([sample for _, sample in good])
            except Exception as error:  # of any kind: whatever processors raise
                if self.dataset is None:
                    raise
                refused = refusals(self.collate, [[sample] for _, sample in good], error)
                skipped += [self.dataset.skip(good[place][0], why) for place, why in refused.items()]
                good = [item for place, item in enumerate(good) if place not in refused]
        index = torch.tensor([index for index, _ in good], dtype=torch.long)
        return {"index": index, "inputs": inputs or {}, "skipped": skipped}
