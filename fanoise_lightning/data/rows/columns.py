"""What the columns of a file must hold, and where its rows come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = [
    "LIST",
    "SINGLE",
    "TEXT",
    "Columns",
    "Kind",
    "as_lists",
    "check_columns",
    "is_lines",
    "nothing",
    "place",
    "where",
    "with_origin",
]

# optional: the column may be missing; an optional list may be a single value; an id may be a whole number
Kind = Literal[
    "id",
    "text",
    "optional text",
    "texts",
    "optional texts",
    "image",
    "optional image",
    "images",
    "optional images",
]
Columns = Mapping[str, Kind]

SINGLE: tuple[Kind, ...] = ("id", "text", "optional text", "image", "optional image")  # no lists

TEXT = pa.large_string()
LIST = pa.large_list(TEXT)


def as_lists(lengths: pa.Array, values: pa.Array) -> pa.Array:
    """A list column from the length of each list and the values of all lists, flat."""
    ends = pc.cumulative_sum(lengths.cast("int64"))
    return pa.LargeListArray.from_arrays(pa.concat_arrays([pa.array([0], pa.int64()), ends]), values)


def check_columns(names: Sequence[str], columns: Columns, file: str | Path) -> None:
    """Compare the names in a parquet file with the `columns` that are wanted.

    Raises:
        ValueError: for a column that is missing or appears twice.
    """
    for name, kind in columns.items():
        if name not in names and not kind.startswith("optional"):
            raise ValueError(f"`{file}`: column `{name}` is missing; the file has {', '.join(names)}")
        if names.count(name) > 1:
            raise ValueError(f"`{file}`: column `{name}` appears {names.count(name)} times; keep one")


def nothing(kind: Kind, size: int) -> pa.Array:
    """A column in which each row has no text, or no image; an empty list, where lists are wanted."""
    if kind in SINGLE:
        return pa.repeat(pa.scalar("", TEXT), size)
    return pa.LargeListArray.from_arrays(pa.array(np.zeros(size + 1, np.int64)), pa.array([], TEXT))


def where(table: pa.Table, index: int) -> str:
    """The file that row `index` of a table comes from, and its row there, for messages."""
    return place(table["file"][index].as_py(), table["row"][index].as_py())


def place(file: str, row: int) -> str:
    """A row of a file, for messages."""
    return f"`{file}`, {'line' if is_lines(file) else 'row'} {row}"


def is_lines(file: str | Path) -> bool:
    """Whether the name of a file is one of JSON-lines, compressed or not."""
    return str(file).lower().endswith((".jsonl", ".jsonl.gz"))


def with_origin(table: pa.Table, file: str | Path, rows: Sequence[int]) -> pa.Table:
    """A table with the columns ``file`` and ``row``, the origin of its `rows`."""
    origin = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), pa.array([str(file)]))
    return table.append_column("file", origin).append_column("row", pa.array(rows, pa.int64()))
