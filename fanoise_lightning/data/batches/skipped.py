"""Rows and items that cannot be used: counted and reported; too many of them stop the run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["SkipLimit", "SkipLog", "SkipReports", "Skipped", "TooManySkippedError"]

LISTED = 20  # of the skipped rows in an error message


class TooManySkippedError(RuntimeError):
    """More images cannot be used than `max_skipped` allows."""


class Skipped(str):
    """A line about a row or item that was skipped: where it is, and what is wrong with it.

    Attributes:
        subset: the name of the subset that it belongs to.
    """

    subset: str

    def __new__(cls, subset: str, line: str) -> Skipped:
        self = super().__new__(cls, line)
        self.subset = subset
        return self

    def __reduce__(self) -> tuple[type[Skipped], tuple[str, str]]:
        return Skipped, (self.subset, str(self))


@dataclass(frozen=True)
class SkipLimit:
    """How many rows or items may be skipped before the run stops.

    Args:
        what: what is counted, in the plural, for messages.
        total: the limit over all subsets.
        of_subset: the limit of each subset, by its name; a subset without one has `total`.
    """

    what: str
    total: int
    of_subset: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_share(cls, what: str, sizes: Mapping[str, int], share: float) -> SkipLimit:
        """The limits that allow a `share` of all rows, and of each subset's, there rounded up.

        Example:
            >>> SkipLimit.of_share("training rows", {"a": 60, "b": 240}, 0.01)
            SkipLimit(what='training rows', total=3, of_subset={'a': 1, 'b': 3})
        """
        of_subset = {name: math.ceil(share * size) for name, size in sizes.items()}
        return cls(what, int(share * sum(sizes.values())), of_subset)

    def check(self, skipped: Iterable[str]) -> None:
        """Stop the run if more were skipped than allowed; lines that are equal count once.

        Raises:
            TooManySkippedError: with the list of them.
        """
        lines = sorted(set(skipped))
        if len(lines) > self.total:
            raise _too_many(lines, self.total, self.what)
        by_subset: dict[str, list[str]] = {}
        for line in lines:
            if isinstance(line, Skipped):
                by_subset.setdefault(line.subset, []).append(line)
        for name, own in by_subset.items():
            if len(own) > (limit := self.of_subset.get(name, self.total)):
                raise _too_many(own, limit, f"{self.what} of subset `{name}`")


def _too_many(lines: list[str], limit: int, what: str) -> TooManySkippedError:
    more = f"\n  ... and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
    return TooManySkippedError(
        f"{len(lines)} {what} cannot be used, `max_skipped` allows {limit}; repair or remove them, or raise "
        "`max_skipped`:\n  " + "\n  ".join(lines[:LISTED]) + more
    )


class SkipLog:
    """What one process skipped of the rows (or items) that it read; each counts once in a run.

    Args:
        limit: how many may be skipped.
        size: how many rows (or items) there are.
    """

    def __init__(self, limit: SkipLimit, size: int) -> None:
        self.limit, self.size = limit, size
        self._seen: dict[str, None] = {}
        self._in_pass = 0

    def add(self, skipped: list[str]) -> None:
        """Count what a batch skipped; the first of a run is reported at once.

        Raises:
            TooManySkippedError: if there are more than allowed.
        """
        if skipped and not self._seen:
            warnings.warn(f"an image cannot be read and is skipped: {skipped[0]}", stacklevel=2)
        self._in_pass += len(skipped)
        before = len(self._seen)
        self._seen.update(dict.fromkeys(skipped))
        if len(self._seen) > before:
            self.limit.check(self._seen)

    def report(self, when: str) -> None:
        """Report what was skipped since the last report, if anything was."""
        if self._in_pass:
            warnings.warn(
                f"{when}: skipped {self._in_pass} times, {len(self._seen)} of {self.size} {self.limit.what} "
                f"so far (`max_skipped` allows {self.limit.total})",
                stacklevel=2,
            )
        self._in_pass = 0


class SkipReports:
    """The skip logs of a data module, one for each kind of loader, and a report after each pass.

    Args:
        max_skipped: share of the rows or items that may be skipped, and of those of each subset.
    """

    def __init__(self, max_skipped: float) -> None:
        self.max_skipped = max_skipped
        self._logs: dict[str, SkipLog] = {}
        self._pass: tuple[str, str] | None = None  # the loader that is being read, and when

    def start_log(self, loader: str, what: str, sizes: Mapping[str, int]) -> SkipLimit:
        """Count what a loader skips of the `what`, of which each subset has so many.

        Returns:
            How many may be skipped.
        """
        limit = SkipLimit.of_share(what, sizes, self.max_skipped)
        self._logs[loader] = SkipLog(limit, sum(sizes.values()))
        return limit

    def add(self, loader: str, when: str, skipped: list[str]) -> None:
        """Count what a batch skipped; the first batch of another pass reports the pass before.

        Raises:
            TooManySkippedError: if there are more than allowed.
        """
        if self._pass != (loader, when):
            self.report()
            self._pass = (loader, when)
        self._logs[loader].add(skipped)

    def report(self) -> None:
        """Report what the last pass skipped."""
        if self._pass is not None:
            loader, when = self._pass
            self._logs[loader].report(when)
            self._pass = None
