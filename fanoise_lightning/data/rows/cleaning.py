"""The text and path columns of a table, checked and cleaned; and the messages about empty rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray

from fanoise_lightning.data.rows.columns import TEXT, nothing, where
from fanoise_lightning.data.rows.paths import CLIMBS, LEAVES_ROOT
from fanoise_lightning.data.rows.references import References, spell_paths
from fanoise_lightning.sample import IMAGE_PLACEHOLDER

__all__ = ["Cleaner", "empty_subset", "skipped_rows", "stray_placeholders"]

PLACEHOLDER = rf"{IMAGE_PLACEHOLDER.pattern}\s*"


class Cleaner:
    """Checks the columns of one table and turns them into references.

    Args:
        subset: its name, for messages.
        table: with the columns ``file`` and ``row``, see `with_origin`.
        absolute: whether absolute paths of images are allowed.

    Attributes:
        strays: how many texts of each column mention an image that the row does not have.
    """

    def __init__(self, subset: str, table: pa.Table, absolute: bool = False) -> None:
        self.subset, self.table = subset, table
        self._leaves_root = CLIMBS if absolute else LEAVES_ROOT
        self.strays: dict[str, int] = {}

    def references(self, text: str | None, image: str | None, *, blind: bool = False) -> References:
        """The references of a text and a path column, flat where these hold lists.

        Args:
            text: the name of the text column, ``None`` for no texts.
            image: the name of the path column, ``None`` for no images.
            blind: drop the images.

        Raises:
            ValueError: for lists of unequal lengths, or a path that leaves the image root; names the row.
        """
        texts, written = self._column(text), self._column(image)
        row_of = np.arange(len(texts))
        if text and image and pa.types.is_large_list(texts.type):
            row_of = np.repeat(row_of, self._lengths(text, image))
            texts, written = pc.list_flatten(texts), pc.list_flatten(written)
        paths = spell_paths(written)
        # the spelling too: a drive letter can come to the front, as in `./C:`
        leaves = pc.or_(*(pc.match_substring_regex(each, self._leaves_root) for each in (written, paths)))
        if (bad := pc.index(leaves, True).as_py()) >= 0:
            raise ValueError(
                f"{self.where(row_of[bad])}: the path {written[bad].as_py()!r} in `{image}` leaves the "
                "image root; give paths relative to it, without `..`"
            )
        if text:
            stray = pc.and_(pc.match_substring_regex(texts, PLACEHOLDER), pc.equal(paths, ""))
            self.strays[text] = pc.sum(stray, min_count=0).as_py()
        if blind:
            paths = pa.array([""] * len(paths), TEXT)
        return References(pc.replace_substring_regex(texts, PLACEHOLDER, ""), paths)

    def _column(self, name: str | None) -> pa.Array:
        if name is None:
            return nothing("text", len(self.table))
        return self.table[name].combine_chunks()

    def _lengths(self, text: str, image: str) -> NDArray[np.int64]:
        """How many entries each row has in both of two list columns."""
        lengths, others = (pc.list_value_length(self.table[name]).to_numpy() for name in (text, image))
        if len(unequal := np.flatnonzero(lengths != others)):
            row = int(unequal[0])
            raise ValueError(
                f"{self.where(row)}: `{text}` has {lengths[row]} entries, `{image}` has {others[row]}; "
                "they must go together"
            )
        return lengths

    def keep(self, empty: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The rows that are not `empty`; empty rows and stray placeholders are counted and reported.

        Raises:
            ValueError: if no row is left.
        """
        for column, count in self.strays.items():
            if count:
                rank_zero_warn(stray_placeholders(self.subset, column, count))
        kept, skipped = np.flatnonzero(~empty), np.flatnonzero(empty)
        if not len(kept):
            raise empty_subset(self.subset, len(skipped))
        if len(skipped):
            first = self.where(int(skipped[0]))
            rank_zero_warn(skipped_rows(self.subset, f"{len(skipped)} of {len(empty)}", first))
        return kept

    def where(self, row: int) -> str:
        """Subset, file and row, for messages."""
        return f"subset `{self.subset}`, {where(self.table, int(row))}"


def stray_placeholders(subset: str, column: str, count: int) -> str:
    """Says that texts mention an image that their row does not have."""
    return (
        f"subset `{subset}`: {count} texts in `{column}` mention an image that the row does not have; the "
        "placeholder is dropped"
    )


def skipped_rows(subset: str, count: str, first: str) -> str:
    """Says that rows are skipped because they are empty."""
    return (
        f"subset `{subset}`: {count} rows are skipped because a query or target has neither text nor image "
        f"(the first: {first})"
    )


def empty_subset(subset: str, skipped: int, ranks: str = "") -> ValueError:
    """The error of a subset without rows, or with all of them `skipped`."""
    cause = f"in each of its {skipped} rows, a query or target has neither text nor image"
    return ValueError(f"subset `{subset}` is empty: {cause if skipped else 'no rows'}{ranks}")
