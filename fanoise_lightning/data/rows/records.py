"""Training and evaluation rows: references, checked and without placeholders, still in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fanoise_lightning.data.rows.cleaning import Cleaner
from fanoise_lightning.data.rows.columns import LIST, TEXT, Columns, as_lists, nothing, where
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

__all__ = [
    "MMEB",
    "EvalRows",
    "PairColumns",
    "Side",
    "TrainRows",
    "keep",
    "pad_candidates",
    "read_eval",
    "read_train",
    "train_rows",
]

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


class Side(NamedTuple):
    """The columns of one side of a pair; ``None`` for none."""

    text: str | None = None
    image: str | None = None

    def __str__(self) -> str:
        named = (("text", self.text), ("picture", self.image))
        return " and ".join(f"`{name}` ({kind})" for kind, name in named if name) or "none"


class PairColumns(NamedTuple):
    """The columns of pairs."""

    query: Side
    target: Side
    negatives: Side = Side()


MMEB = PairColumns(Side("qry", "qry_image_path"), Side("pos_text", "pos_image_path"), Side(*_NEGATIVES))


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
        num_empty: how many rows of the source are left out, because their query or target is empty.
    """

    name: str
    queries: References
    targets: References
    table: pa.Table
    embedded: EmbeddedImages | None = None
    mask_same_target: bool = False
    num_empty: int = 0

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

    def with_paths(self, other: Mapping[str, str]) -> TrainRows:
        """The rows with other paths of images: those that are keys of `other` become its values."""
        if not other:
            return self
        old, new = pa.array(other.keys(), TEXT), pa.array(other.values(), TEXT)

        def change(images: pa.Array) -> pa.Array:
            return pc.coalesce(new.take(pc.index_in(images, old)), images)

        lists = self.table[_NEGATIVES[1]].combine_chunks()
        negatives = as_lists(pc.list_value_length(lists), change(pc.list_flatten(lists)))
        place = self.table.column_names.index(_NEGATIVES[1])
        return replace(
            self,
            queries=replace(self.queries, images=change(self.queries.images)),
            targets=replace(self.targets, images=change(self.targets.images)),
            table=self.table.set_column(place, _NEGATIVES[1], negatives),
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
        candidates: ``(Q, C)``, each once in a row, the right answers first, ``-1`` after the last.
        embedded: the images that the rows themselves hold.
        num_right: ``(Q,)``, how many candidates of a query are right; ``None`` for one of each.
        catalogue: ``(N,)``, further candidates of every query, except of one that is that item; ``None`` for
            none.
        excluded: ``(Q, E)``, items of the catalogue that are no candidates of a query, ``-1`` after the last;
            ``None`` for none.
    """

    subset: Subset
    items: References
    queries: NDArray[np.int64]
    candidates: NDArray[np.int64]
    embedded: EmbeddedImages | None = None
    num_right: NDArray[np.int64] | None = None
    catalogue: NDArray[np.int64] | None = None
    excluded: NDArray[np.int64] | None = None

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
    return replace(keep(clean, rows, empty), embedded=embedded, mask_same_target=mask_same_target)


def keep(clean: Cleaner, rows: TrainRows, empty: NDArray[np.bool_]) -> TrainRows:
    """The rows that are not `empty`, see `Cleaner.keep`."""
    kept = clean.keep(empty)
    return rows if len(kept) == len(rows) else rows.take(kept)  # a copy of millions of rows is large


def train_rows(
    clean: Cleaner, *, blind: bool, columns: PairColumns = MMEB
) -> tuple[TrainRows, NDArray[np.bool_]]:
    """All rows of a table, and which of them have an empty query or target."""
    queries = clean.references(*columns.query, blind=blind)
    targets = clean.references(*columns.target)
    rows = TrainRows(clean.subset, queries, targets, _clean_negatives(clean, columns.negatives))
    return rows, queries.is_empty | targets.is_empty


def _clean_negatives(clean: Cleaner, side: Side) -> pa.Table:
    """Both columns of the negatives, cleaned, and the origin of the rows; a missing column is filled up."""
    table = clean.table
    parts = [nothing("optional texts", len(table)) if name is None else table[name] for name in side]
    if not any(len(pc.list_flatten(part)) for part in parts):
        return pa.table(dict(zip(_NEGATIVES, parts)) | {"file": table["file"], "row": table["row"]})
    rows = list(zip(*(part.to_pylist() for part in parts)))
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
    candidates = pad_candidates(codes[len(kept) :], lengths[kept])
    return EvalRows(subset, items, codes[: len(kept)], candidates, embedded)


def pad_candidates(items: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The candidates of each query, each once in a row, ``-1`` after the last.

    Args:
        items: (N,), the candidates of all queries, flat.
        lengths: (Q,), how many each query has.

    Returns:
        ``(Q, C)``.

    Example:
        >>> pad_candidates(np.array([5, 6, 5, 7]), np.array([3, 1])).tolist()
        [[5, 6], [7, -1]]
    """
    query_of = np.repeat(np.arange(len(lengths)), lengths)
    keys = query_of * (int(items.max(initial=0)) + 1) + items
    first = np.sort(np.unique(keys, return_index=True)[1])
    query_of, items = query_of[first], items[first]
    lengths = np.bincount(query_of, minlength=len(lengths))
    padded = np.full((len(lengths), lengths.max(initial=0)), -1, dtype=np.int64)
    padded[query_of, np.arange(len(items)) - (np.cumsum(lengths) - lengths)[query_of]] = items
    return padded
