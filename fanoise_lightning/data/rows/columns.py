"""What the columns of a file must hold, and where its rows come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

__all__ = ["LIST", "TEXT", "Columns", "Kind", "check_columns", "is_lines", "place", "where", "with_origin"]

# optional: the column may be missing, and holds single values or lists
Kind = Literal["text", "texts", "optional texts", "image", "images", "optional images"]
Columns = Mapping[str, Kind]

TEXT = pa.large_string()
LIST = pa.large_list(TEXT)


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
