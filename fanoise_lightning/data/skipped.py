"""Pictures that cannot be read: counted, reported, and too many of them stop the run."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

__all__ = ["SkipLog", "TooManySkippedError", "check_limit"]

LISTED = 20  # of the broken pictures in an error message


class TooManySkippedError(RuntimeError):
    """More pictures cannot be read than `max_skipped` allows."""


def check_limit(skipped: Iterable[str], allowed: int, what: str) -> None:
    """Stop the run if more than `allowed` of the `what` were skipped.

    Raises:
        TooManySkippedError: with the list of them.
    """
    lost = sorted(set(skipped))
    if len(lost) > allowed:
        more = f"\n  ... and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
        raise TooManySkippedError(
            f"{len(lost)} {what} have pictures that cannot be read, `max_skipped` allows {allowed}; "
            "repair or remove them, or raise `max_skipped`:\n  " + "\n  ".join(lost[:LISTED]) + more
        )


class SkipLog:
    """What one process had to skip of the rows (or sides) that it read.

    Args:
        what: what is counted, in the plural, for the messages.
        total: how many of them there are.
        max_skipped: the share of `total` that may be skipped, each counted once in a run.
    """

    def __init__(self, what: str, total: int, max_skipped: float) -> None:
        self.what, self.total, self.allowed = what, total, int(max_skipped * total)
        self._seen: dict[str, None] = {}
        self._in_pass = 0

    def add(self, skipped: list[str]) -> None:
        """Count the skips of a batch; the first of a run is reported at once.

        Raises:
            TooManySkippedError: if there are more than allowed.
        """
        if skipped and not self._seen:
            warnings.warn(f"a picture cannot be read and is skipped: {skipped[0]}", stacklevel=2)
        self._in_pass += len(skipped)
        self._seen.update(dict.fromkeys(skipped))
        check_limit(self._seen, self.allowed, self.what)

    def report(self, when: str) -> None:
        """Report the skips since the last report, if there were any."""
        if self._in_pass:
            warnings.warn(
                f"{when}: skipped {self._in_pass} times, {len(self._seen)} of {self.total} {self.what} "
                f"so far (`max_skipped` allows {self.allowed})",
                stacklevel=2,
            )
        self._in_pass = 0
