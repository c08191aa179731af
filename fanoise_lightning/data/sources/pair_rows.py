"""Pairs from any source of rows."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from fanoise_lightning.data.rows.cleaning import Cleaner
from fanoise_lightning.data.rows.columns import Kind
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
    for side in (columns.query, columns.target):
        wanted |= _kinds(side, "text", "image")
    table, embedded = source.read(wanted)
    clean = Cleaner(source.short_name, table, source.absolute)
    rows, empty = train_rows(clean, blind=blind, columns=columns)
    rows = keep(clean, rows, empty)
    del table, clean
    pa.default_memory_pool().release_unused()  # else the next step adds to what this one has left behind
    return replace(rows, embedded=embedded, mask_same_target=mask_same_target)


def _kinds(side: Side, text: Kind, image: Kind) -> dict[str, Kind]:
    pairs = ((side.text, text), (side.image, image))
    return {name: kind for name, kind in pairs if name is not None}
