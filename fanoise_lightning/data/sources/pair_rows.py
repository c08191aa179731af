"""Pairs from any source of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise_lightning.data.rows.cleaning import Cleaner
from fanoise_lightning.data.rows.columns import Kind, nothing
from fanoise_lightning.data.rows.records import PairColumns, Side, TrainRows, keep, train_rows
from fanoise_lightning.data.sources.source import Source

__all__ = ["read_pairs"]


def read_pairs(source: Source, columns: PairColumns, *, blind: bool, mask_same_target: bool) -> TrainRows:
    """Read the pairs of a source.

    Args:
        source: see `open_source`.
        columns: see `choose_pair`.
        blind: drop the images of the queries.
        mask_same_target: pairs of a batch with the same target are not each other's negatives.

    Raises:
        ValueError: for rows that cannot be read, paths that leave the image root, or no usable row.
    """
    wanted = _kinds(columns.negatives, "optional texts", "optional images")
    lists = []
    for side in (columns.query, columns.target):
        wanted |= _kinds(side, "text", "image")
        lists += [name for name in side if name and source.kinds[name] in ("texts", "images")]
    wanted |= {name: "optional texts" if wanted[name] == "text" else "optional images" for name in lists}
    table, embedded = source.read(wanted)
    for name in lists:
        table = _one_row_each(table, name)
    clean = Cleaner(source.short_name, table, source.absolute)
    rows, empty = train_rows(clean, blind=blind, columns=columns)
    num_empty = int(empty.sum())
    rows = keep(clean, rows, empty)
    del table, clean
    pa.default_memory_pool().release_unused()  # else the next step adds to what this one has left behind
    return replace(rows, embedded=embedded, mask_same_target=mask_same_target, num_empty=num_empty)


def _one_row_each(table: pa.Table, name: str) -> pa.Table:
    """A row for each value of a column of lists; an empty list is one row without a value."""
    lists = table[name].combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy()
    repeats = np.maximum(lengths, 1)
    rows = pa.array(np.repeat(np.arange(len(table)), repeats))
    filled = pa.array(np.repeat(lengths > 0, repeats))
    values = pc.replace_with_mask(nothing("text", len(rows)), filled, pc.list_flatten(lists))
    return table.drop_columns([name]).take(rows).append_column(name, values)


def _kinds(side: Side, text: Kind, image: Kind) -> dict[str, Kind]:
    pairs = ((side.text, text), (side.image, image))
    return {name: kind for name, kind in pairs if name is not None}
