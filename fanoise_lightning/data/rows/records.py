"""Training and evaluation rows: references, checked and without placeholders, still in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fanoise_lightning.data.rows.cleaning import Cleaner
from fanoise_lightning.data.rows.columns import LIST, Columns, as_lists, where
from fanoise_lightning.data.rows.embedded import EmbeddedImages
from fanoise_lightning.data.rows.references import (
    Reference,
    References,
    list_negatives,
    unique_paths,
    unique_references,
)
from fanoise_lightning.data.rows.tables import read_table
from fanoise_lightning.subset import Subset

__all__ = ["EvalRows", "TrainRows", "pad_candidates", "read_eval", "read_train", "train_rows"]

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
_NEGATIVES = ("neg_text", "neg_image_path")


@dataclass(frozen=True)
class TrainRows:
    """The training pairs of one subset.

    Args:
        name: of the subset.
        queries: of the N rows.
        targets: of the N rows.
        table: N rows; their hard negatives, in two list columns of equal lengths, and their origin.
        embedded: the images that the rows themselves hold.
        mask_same_target: pairs of a batch with the same target are not each other's negatives.
    """

    name: str
    queries: References
    targets: References
    table: pa.Table
    embedded: EmbeddedImages | None = None
    mask_same_target: bool = False

    def __len__(self) -> int:
        return len(self.queries)

    def negatives(self, index: int) -> list[Reference]:
        """The hard negatives of a row, without those that have neither text nor image."""
        return list_negatives(*(self.table[name][index].as_py() for name in _NEGATIVES))

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
        """The hard negatives of all rows, flat, with those that have neither text nor image."""
        texts, images = (pc.list_flatten(self.table[name].combine_chunks()) for name in _NEGATIVES)
        return References(texts, images)

    @property
    def paths(self) -> pa.Array:
        """The path of each image once, in the order of the rows; embedded images have none."""
        return unique_paths(self.queries.images, self.targets.images, self.all_negatives.images)


@dataclass(frozen=True)
class EvalRows:
    """The queries of one evaluation subset and their candidates, as indices into unique items.

    Args:
        subset: what the rows belong to.
        items: each (text, image) once; those without an image first, and short texts before long ones.
        queries: ``(Q,)``.
        candidates: ``(Q, C)``, each once in a row, the ground truth in column 0, ``-1`` after the last.
        embedded: the images that the rows themselves hold.
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
        """The path of each image once, in the order of the items; embedded images have none."""
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
    """All rows of a table with the `TRAIN_COLUMNS`, and which of them have an empty query or target."""
    queries = clean.references("qry", "qry_image_path", blind=blind)
    targets = clean.references("pos_text", "pos_image_path")
    rows = TrainRows(clean.subset, queries, targets, _clean_negatives(clean))
    return rows, queries.is_empty | targets.is_empty


def _clean_negatives(clean: Cleaner) -> pa.Table:
    """Both columns of the negatives, cleaned, and the origin of the rows; a missing column is filled up."""
    table = clean.table
    if not any(len(pc.list_flatten(table[name])) for name in _NEGATIVES):
        return table.select([*_NEGATIVES, "file", "row"])
    rows = list(zip(*(table[name].to_pylist() for name in _NEGATIVES)))
    texts = pa.array([texts or [""] * len(images) for texts, images in rows], LIST)
    images = pa.array([images or [""] * len(texts) for texts, images in rows], LIST)
    origin = {"file": table["file"], "row": table["row"]}
    clean.table = pa.table({"neg_text": texts, "neg_image_path": images, **origin})
    negatives = clean.references(*_NEGATIVES)
    lengths = pc.list_value_length(texts)
    texts, images = as_lists(lengths, negatives.texts), as_lists(lengths, negatives.images)
    return pa.table({"neg_text": texts, "neg_image_path": images, **origin})


def read_eval(path: Path | Sequence[Path], subset: Subset, *, blind: bool = False) -> EvalRows:
    """Read the evaluation rows of a subset; arguments and errors are those of `read_train`.

    A candidate that a row has twice counts once: a copy of the ground truth would tie with it.
    """
    table, embedded = read_table(path, EVAL_COLUMNS)
    clean = Cleaner(subset.name, table)
    queries = clean.references("qry_text", "qry_img_path", blind=blind)
    targets = clean.references("tgt_text", "tgt_img_path")
    lengths = pc.list_value_length(table["tgt_text"]).to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    empty = queries.is_empty | (lengths == 0)
    empty[np.searchsorted(ends, np.flatnonzero(targets.is_empty), side="right")] = True
    kept = clean.keep(empty)
    wanted = np.concatenate([np.arange(ends[row] - lengths[row], ends[row]) for row in kept])
    items, codes = unique_references(queries.take(kept), targets.take(wanted))
    rows = np.split(codes[len(kept) :], np.cumsum(lengths[kept])[:-1])
    candidates = pad_candidates([row.tolist() for row in rows])
    return EvalRows(subset, items, codes[: len(kept)], candidates, embedded)


def pad_candidates(rows: list[list[int]]) -> NDArray[np.int64]:
    """The candidates of each query as ``(Q, C)``, each once in a row, ``-1`` after the last."""
    rows = [list(dict.fromkeys(row)) for row in rows]
    padded = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for query, row in enumerate(rows):
        padded[query, : len(row)] = row
    return padded
