"""Samples that an encoder cannot take, such as an image of 3x900 pixels: found, and their pairs replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from fanoise_lightning.data.batches.replacements import Replacements
from fanoise_lightning.sample import Collate, Pair, Sample

__all__ = ["Read", "Refusal", "SkipRefused", "refusals"]

Refusal = Callable[[Pair], str]


class Read(NamedTuple):
    """A batch as it was read.

    Args:
        pairs: in the order of the batch.
        skipped: a line about each row that was skipped.
        replacements: where to draw rows that replace others.
    """

    pairs: list[Pair]
    skipped: list[str]
    replacements: Replacements | None = None


class PairData(Protocol):
    """A data set that can replace pairs of a batch that it read."""

    def replace(self, read: Read, refused: Mapping[int, str], refusal: Refusal) -> Read:
        """See `TrainDataset.replace`."""


@dataclass(frozen=True)
class SkipRefused:
    """Collates pairs; those that the encoder refuses are replaced, and named as skipped.

    Args:
        collate: the encoder's.
        collate_pairs: makes a batch of pairs with it. A batch without pairs is ``{"skipped": ...}`` alone.
        dataset: what read the pairs.
    """

    collate: Collate
    collate_pairs: Callable[[Read], dict[str, Any]]
    dataset: PairData

    def __call__(self, read: Read) -> dict[str, Any]:
        while read.pairs:
            try:
                return self.collate_pairs(read)
            except Exception as error:  # of any kind: whatever processors raise
                refused = refusals(self.collate, [_samples(pair) for pair in read.pairs], error)
                read = self.dataset.replace(read, refused, self._refusal)
        return {"skipped": read.skipped}

    def _refusal(self, pair: Pair) -> str:
        return next(iter(_refused(self.collate, [_samples(pair)]).values()), "")


def refusals(collate: Collate, groups: Sequence[Sequence[Sample]], error: Exception) -> dict[int, str]:
    """Which groups of samples an encoder refuses, and why; at least one.

    Args:
        collate: the encoder's, which failed on all groups together. If it has a method ``check`` that raises
            for a sample that it cannot take, that is tried first: it costs less than collating.
        groups: the samples of each pair, or of each item.
        error: what it failed with. It is raised again if no group is at fault, or if all of several are:
            then the samples are not the cause.
    """
    refused = _refused(collate, groups)
    if not refused or len(refused) == len(groups) > 1:
        raise error
    return refused


def _refused(collate: Collate, groups: Sequence[Sequence[Sample]]) -> dict[int, str]:
    check = getattr(collate, "check", None)
    found = {} if check is None else _failing(check, groups)
    return found or _failing(lambda sample: collate([sample]), groups)


def _failing(use: Callable[[Sample], Any], groups: Sequence[Sequence[Sample]]) -> dict[int, str]:
    found = {}
    for place, group in enumerate(groups):
        for sample in group:
            try:
                use(sample)
            except Exception as error:
                found[place] = f"the encoder refuses it: {error}"
                break
    return found


def _samples(pair: Pair) -> list[Sample]:
    return [pair.query, pair.target, *pair.negatives]
