"""Hard negatives in numbered columns, as data sets for sentence-transformers have them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from fanoise_lightning.data.rows.columns import Columns, Kind, as_lists
from fanoise_lightning.data.rows.embedded import EmbeddedImages
from fanoise_lightning.data.sources.source import Source

__all__ = ["NUMBERED", "join_negatives"]

NUMBERED = re.compile(r"negative_\d+", re.IGNORECASE)
_JOINED = "negative"
_LISTS: dict[Kind | None, Kind] = {"text": "texts", "image": "images"}


def join_negatives(source: Source) -> Source:
    """A source with one more column, ``negative``: lists of ``negative_1``, ``negative_2``, and so on.

    Nothing changes if there are none of these, or if some hold texts and others pictures.
    """
    parts = [name for name in source.kinds if NUMBERED.fullmatch(name)]
    kinds = {source.kinds[name] for name in parts}
    if _JOINED in source.kinds or len(kinds) != 1 or not kinds <= _LISTS.keys():
        return source
    (kind,) = kinds

    def read(columns: Columns) -> tuple[pa.Table, EmbeddedImages | None]:
        if _JOINED not in columns:
            return source.read(columns)
        others = {name: each for name, each in columns.items() if name != _JOINED}
        table, embedded = source.read({**others, **{name: kind for name in parts if kind is not None}})
        return table.append_column(_JOINED, _side_by_side([table[name] for name in parts])), embedded

    return replace(source, kinds={**source.kinds, _JOINED: _LISTS[kind]}, read=read)


def _side_by_side(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    """Lists of the values of each row."""
    rows, width = len(columns[0]), len(columns)
    values = pa.concat_arrays([column.combine_chunks() for column in columns])
    by_row = np.arange(rows * width).reshape(width, rows).T.ravel()
    return as_lists(pa.array(np.full(rows, width)), values.take(pa.array(by_row)))
