"""Training and evaluation rows: references, checked, without placeholders, still columnar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray

from fanoise_lightning.data.rows.columns import LIST, TEXT, Columns, where
from fanoise_lightning.data.rows.embedded import EmbeddedImages
from fanoise_lightning.data.rows.paths import LEAVES_ROOT
from fanoise_lightning.data.rows.references import (
    Reference,
    References,
    list_negatives,
    spell_paths,
    unique_paths,
    unique_references,
)
from fanoise_lightning.data.rows.tables import as_lists, read_table
from fanoise_lightning.subset import Subset

__all__ = ["Cleaner", "EvalRows", "TrainRows", "pad_candidates", "read_eval", "read_train", "train_rows"]

PLACEHOLDER = r"<\|image_\d+\|>\s*"

TRAIN_COLUMNS: Columns = {
    "qry": "text",
    "qry_image_path": "image",
    "pos_text": "text",
    "pos_image_path": "image",
    "neg_text": "optional texts",
    "neg_image_path": "optional images",
}
EVAL_COLUMNS: Columns = {
    "qry_text": "text",
    "qry_img_path": "image",
    "tgt_text": "texts",
    "tgt_img_path": "images",
}


@dataclass(frozen=True)
class TrainRows:
    """The training pairs of one subset."""

    name: str
    queries: References
    targets: References
    table: pa.Table  # negatives (two list columns of equal lengths), and the origin of each row
    embedded: EmbeddedImages | None = None
    mask_same_target: bool = False  # pairs with the same target are not each other's negatives

    def __len__(self) -> int:
        return len(self.queries)

    def negatives(self, index: int) -> list[Reference]:
        """The hard negatives of a row; those with neither text nor image are none."""
        return list_negatives(*(self.table[name][index].as_py() for name in ("neg_text", "neg_image_path")))

    def where(self, index: int) -> str:
        """Subset, file and row, for messages."""
        return f"subset `{self.name}`, {where(self.table, index)}"

    def take(self, index: NDArray[np.int64]) -> TrainRows:
        """The rows at `index`."""
        return replace(
            self,
            queries=self.queries.take(index),
            targets=self.targets.take(index),
            table=self.table.take(pa.array(index)),
        )

    @property
    def all_negatives(self) -> References:
        """The hard negatives of all rows, flat; those with neither text nor image are none."""
        columns = (self.table[name].combine_chunks() for name in ("neg_text", "neg_image_path"))
        return References(*map(pc.list_flatten, columns))

    @property
    def paths(self) -> pa.Array:
        """The path of each image once, in the order of the rows, without those that the rows hold."""
        return unique_paths(self.queries.images, self.targets.images, self.all_negatives.images)


@dataclass(frozen=True)
class EvalRows:
    """The queries of one evaluation subset and their candidates, as indices into unique items.

    Args:
        subset: what the rows belong to.
        items: each (text, image) once; those without an image first, short texts first.
        queries: ``(Q,)``.
        candidates: ``(Q, C)``, each once, the ground truth in column 0, ``-1`` behind the last.
        embedded: the images that the rows hold themselves.
    """

    subset: Subset
    items: References
    queries: NDArray[np.int64]
    candidates: NDArray[np.int64]
    embedded: EmbeddedImages | None = None

    @property
    def name(self) -> str:
        """The name of the subset."""
        return self.subset.name

    @property
    def paths(self) -> pa.Array:
        """The path of each image once, in the order of the items, without those that the rows hold."""
        return unique_paths(self.items.images)


def read_train(
    path: Path | Sequence[Path],
    name: str,
    *,
    limit: int | None = None,
    blind: bool = False,
    mask_same_target: bool = False,
) -> TrainRows:
    """Read the training rows of a subset.

    Args:
        path: see `read_table`.
        name: of the subset.
        limit: take the first `limit` rows.
        blind: drop the images of the queries.
        mask_same_target: pairs of a batch with the same target are not each other's negatives.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for wrong columns, paths that leave the image root, or no usable row.
    """
    table, embedded = read_table(path, TRAIN_COLUMNS, limit)
    clean = Cleaner(name, table)
    rows, empty = train_rows(clean, blind=blind)
    rows = replace(rows, embedded=embedded, mask_same_target=mask_same_target)
    return rows.take(clean.keep(empty))


def train_rows(clean: Cleaner, *, blind: bool) -> tuple[TrainRows, NDArray[np.bool_]]:
    """All rows of a table with the `TRAIN_COLUMNS`, and which of them have an empty side."""
    queries = clean.references("qry", "qry_image_path", blind=blind)
    targets = clean.references("pos_text", "pos_image_path")
    rows = TrainRows(clean.subset, queries, targets, _clean_negatives(clean))
    return rows, queries.is_empty | targets.is_empty


def _clean_negatives(clean: Cleaner) -> pa.Table:
    """The table with both columns of the negatives cleaned, and a missing one filled up."""
    table, names = clean.table, ("neg_text", "neg_image_path")
    if any(len(pc.list_flatten(table[name])) for name in names):
        texts, images = (table[name].to_pylist() for name in names)
        texts, images = (
            [row or [""] * len(other) for row, other in zip(*both)]
            for both in ((texts, images), (images, texts))
        )
        for name, rows in zip(names, (texts, images)):
            table = table.set_column(table.column_names.index(name), name, pa.array(rows, LIST))
        clean.table = table
        references = clean.references(*names)
        for name, values in zip(names, (references.texts, references.images)):
            table = table.set_column(
                table.column_names.index(name), name, as_lists(pa.array(list(map(len, texts))), values)
            )
    return table.select([*names, "file", "row"])


def read_eval(path: Path | Sequence[Path], subset: Subset, *, blind: bool = False) -> EvalRows:
    """Read the evaluation rows of a subset; arguments and errors as in `read_train`.

    A candidate that comes twice in a row is taken once: a copy of the ground truth would tie with it.
    """
    table, embedded = read_table(path, EVAL_COLUMNS)
    clean = Cleaner(subset.name, table)
    queries = clean.references("qry_text", "qry_img_path", blind=blind)
    targets = clean.references("tgt_text", "tgt_img_path")
    lengths = pc.list_value_length(table["tgt_text"]).to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    empty = queries.is_empty | (lengths == 0)
    empty[np.searchsorted(ends, np.flatnonzero(targets.is_empty), side="right")] = True
    keep = clean.keep(empty)
    wanted = np.concatenate([np.arange(ends[row] - lengths[row], ends[row]) for row in keep])
    items, codes = unique_references(queries.take(keep), targets.take(wanted))
    rows = np.split(codes[len(keep) :], np.cumsum(lengths[keep])[:-1])
    candidates = pad_candidates([row.tolist() for row in rows])
    return EvalRows(subset, items, codes[: len(keep)], candidates, embedded)


def pad_candidates(rows: list[list[int]]) -> NDArray[np.int64]:
    """Candidates of each query, ``-1`` behind the last; what comes twice in a row is taken once."""
    rows = [list(dict.fromkeys(row)) for row in rows]
    padded = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for query, row in enumerate(rows):
        padded[query, : len(row)] = row
    return padded


class Cleaner:
    """Checks the columns of one table and turns them into references.

    Attributes:
        strays: how many texts of each column speak of an image that the row does not have.
    """

    def __init__(self, subset: str, table: pa.Table) -> None:
        self.subset, self.table = subset, table
        self.strays: dict[str, int] = {}

    def references(self, text: str, image: str, *, blind: bool = False) -> References:
        """The references of a text and a path column, flat where they hold lists."""
        texts, images = self.table[text].combine_chunks(), self.table[image].combine_chunks()
        row_of = np.arange(len(texts))
        if pa.types.is_large_list(texts.type):
            lengths, others = (pc.list_value_length(column).to_numpy() for column in (texts, images))
            if len(rows := np.flatnonzero(lengths != others)):
                row = int(rows[0])
                raise ValueError(
                    f"{self.where(row)}: `{text}` has {lengths[row]} entries, `{image}` has {others[row]}; "
                    "they must go together"
                )
            row_of = np.repeat(row_of, lengths)
            texts, images = pc.list_flatten(texts), pc.list_flatten(images)
        written, images = images, spell_paths(images)
        # a drive letter can come to the front: `./C:`
        leaves = [pc.match_substring_regex(paths, LEAVES_ROOT) for paths in (written, images)]
        bad = pc.index(pc.or_(*leaves), True).as_py()
        if bad >= 0:
            raise ValueError(
                f"{self.where(row_of[bad])}: the path {written[bad].as_py()!r} in `{image}` leaves the "
                "image root; give paths relative to it, without `..`"
            )
        stray = pc.and_(pc.match_substring_regex(texts, PLACEHOLDER), pc.equal(images, ""))
        self.strays[text] = pc.sum(stray, min_count=0).as_py()
        if blind:
            images = pa.array([""] * len(images), TEXT)
        return References(pc.replace_substring_regex(texts, PLACEHOLDER, ""), images)

    def keep(self, empty: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The rows that are not `empty`; the others, and stray placeholders, are counted and reported."""
        for column, count in self.strays.items():
            if count:
                rank_zero_warn(
                    f"subset `{self.subset}`: {count} texts in `{column}` speak of an image that the row "
                    "does not have; the placeholder is dropped"
                )
        rows, lost = np.flatnonzero(~empty), np.flatnonzero(empty)
        if not len(rows):
            cause = f"on each of its {len(lost)} rows a side lacks text and image" if len(lost) else "no rows"
            raise ValueError(f"subset `{self.subset}` is empty: {cause}")
        if len(lost):
            rank_zero_warn(
                f"subset `{self.subset}`: {len(lost)} of {len(empty)} rows are skipped, a side of them "
                f"has neither text nor image (the first: {self.where(int(lost[0]))})"
            )
        return rows

    def where(self, row: int) -> str:
        """Subset, file and row, for messages."""
        return f"subset `{self.subset}`, {where(self.table, int(row))}"
