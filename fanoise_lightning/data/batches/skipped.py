"""Rows and items that cannot be used: counted, reported, and too many of them stop the run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping

__all__ = ["SkipLog", "Skipped", "TooManySkippedError", "allowed_in", "check_limit"]

LISTED = 20  # of the broken images in an error message


class TooManySkippedError(RuntimeError):
    """More images cannot be read than `max_skipped` allows."""


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


def allowed_in(sizes: Mapping[str, int], max_skipped: float) -> dict[str, int]:
    """How many may be skipped of each subset: the share `max_skipped` of its size, rounded up."""
    return {name: math.ceil(max_skipped * size) for name, size in sizes.items()}


def check_limit(
    skipped: Iterable[str], allowed: int, what: str, in_subsets: Mapping[str, int] | None = None
) -> None:
    """Stop the run if more than `allowed` of the `what` were skipped, or more of one subset than it may lose.

    Raises:
        TooManySkippedError: with the list of them.
    """
    lost = sorted(set(skipped))
    if len(lost) > allowed:
        raise _too_many(lost, allowed, what)
    by_subset: dict[str, list[str]] = {}
    for line in lost if in_subsets else ():
        if isinstance(line, Skipped):
            by_subset.setdefault(line.subset, []).append(line)
    for name, lines in by_subset.items():
        if len(lines) > (limit := (in_subsets or {}).get(name, allowed)):
            raise _too_many(lines, limit, f"{what} of subset `{name}`")


def _too_many(lost: list[str], allowed: int, what: str) -> TooManySkippedError:
    more = f"\n  ... and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
    return TooManySkippedError(
        f"{len(lost)} {what} cannot be used, `max_skipped` allows {allowed}; repair or remove them, or raise "
        "`max_skipped`:\n  " + "\n  ".join(lost[:LISTED]) + more
    )


class SkipLog:
    """What one process had to skip of the rows (or items) that it read.

    Args:
        what: what is counted, in the plural, for the messages.
        total: how many of them there are, or how many of each subset.
        max_skipped: the share of them, and of those of each subset, that may be skipped, each counted once in
            a run.
    """

    def __init__(self, what: str, total: int | Mapping[str, int], max_skipped: float) -> None:
        sizes = {} if isinstance(total, int) else total
        self.what = what
        self.total = total if isinstance(total, int) else sum(sizes.values())
        self.allowed = int(max_skipped * self.total)
        self.in_subsets = allowed_in(sizes, max_skipped)
        self._seen: dict[str, None] = {}
        self._in_pass = 0

    def add(self, skipped: list[str]) -> None:
        """Count the skips of a batch; the first of a run is reported at once.

        Raises:
            TooManySkippedError: if there are more than allowed.
        """
        if skipped and not self._seen:
            warnings.warn(f"an image cannot be read and is skipped: {skipped[0]}", stacklevel=2)
        self._in_pass += len(skipped)
        before = len(self._seen)
        self._seen.update(dict.fromkeys(skipped))
        if len(self._seen) > before:
            check_limit(self._seen, self.allowed, self.what, self.in_subsets)

    def report(self, when: str) -> None:
        """Report the skips since the last report, if there were any."""
        if self._in_pass:
            warnings.warn(
                f"{when}: skipped {self._in_pass} times, {len(self._seen)} of {self.total} {self.what} "
                f"so far (`max_skipped` allows {self.allowed})",
                stacklevel=2,
            )
        self._in_pass = 0
