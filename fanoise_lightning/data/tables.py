"""Files of rows as Arrow tables: parquet, shards of it, or JSON-lines, with columns of text and lists of
text.

Rows stay columnar: a million of them are a handful of buffers, which forked workers share. Every row
remembers the file and the row that it came from, so that an error found later can name them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["Columns", "Kind", "as_lists", "find_subsets", "read_table", "where"]

Kind = Literal["text", "list", "optional"]  # optional: may be missing, and holds a text or a list of texts
Columns = Mapping[str, Kind]

TEXT = pa.large_string()
LIST = pa.large_list(TEXT)


def find_subsets(folder: Path) -> dict[str, Path]:
    """The subsets in `folder` by name: ``<name>.parquet``, ``<name>.jsonl`` or a folder ``<name>/`` of
    parquet.

    Raises:
        ValueError: if a subset is there in two forms.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        is_shards = path.is_dir() and any(path.glob("*.parquet"))
        if not is_shards and path.suffix not in (".parquet", ".jsonl"):
            continue
        name = path.name if is_shards else path.stem
        if name in found:
            raise ValueError(f"subset `{name}` is there twice: `{found[name]}` and `{path}`; remove one")
        found[name] = path
    return found


def read_table(path: Path, columns: Columns, limit: int | None = None) -> pa.Table:
    """Read the `columns` of a file or a folder of shards, and where each row came from.

    Args:
        path: a ``.parquet`` or ``.jsonl`` file, or a folder of ``.parquet`` files, read in the order of their
            names.
        columns: the kind of each column that is wanted.
        limit: read the first `limit` rows only.

    Returns:
        Text columns as text (nothing is ``""``), the others as lists of texts, and the columns ``file`` and
        ``row``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unreadable file or row, a missing column or a wrong type; names file, row and
            column.
    """
    if not path.exists():
        raise FileNotFoundError(f"`{path}` does not exist")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    tables: list[pa.Table] = []
    left = limit
    for file in files:
        table = (_read_lines if file.suffix == ".jsonl" else _read_parquet)(file, columns, left)
        tables.append(table)
        left = None if left is None else left - len(table)
        if left == 0:
            break
    if not tables:
        raise ValueError(f"`{path}` holds no .parquet file")
    return pa.concat_tables(tables).combine_chunks()


def where(table: pa.Table, index: int) -> str:
    """The file and the row of the file that row `index` of `table` came from, for messages."""
    file, row = table["file"][index].as_py(), table["row"][index].as_py()
    return f"`{file}`, {'line' if file.endswith('.jsonl') else 'row'} {row}"


def _with_origin(columns: dict[str, pa.Array], file: Path, rows: Any) -> pa.Table:
    origin = pa.DictionaryArray.from_arrays(pa.array([0] * len(rows), pa.int32()), pa.array([str(file)]))
    return pa.table({**columns, "file": origin, "row": pa.array(rows, pa.int64())})


def _read_parquet(file: Path, columns: Columns, limit: int | None) -> pa.Table:
    try:
        names = pq.read_schema(file).names
        for name, kind in columns.items():
            if name not in names and kind != "optional":
                raise ValueError(f"`{file}`: column `{name}` is missing; the file has {', '.join(names)}")
        table = pq.read_table(file, columns=[name for name in columns if name in names])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"`{file}` cannot be read as parquet: {error}") from error
    table = table.slice(0, limit)
    result: dict[str, pa.Array] = {}
    for name, kind in columns.items():
        if name not in names:
            result[name] = pa.array([[]] * len(table), LIST)
            continue
        column = table[name].combine_chunks()
        try:
            result[name] = _texts(column) if kind == "text" else _lists(column, kind)
        except TypeError as error:
            raise ValueError(f"`{file}`: column `{name}` must hold {error}, found {column.type}") from None
    return _with_origin(result, file, range(len(table)))


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
        or (pa.types.is_dictionary(kind) and _is_text(kind.value_type))
    )


def _texts(column: pa.Array) -> pa.Array:
    if not _is_text(column.type):
        raise TypeError("text")
    return pc.fill_null(column.cast(TEXT), "")


def _lists(column: pa.Array, kind: Kind) -> pa.Array:
    if kind == "optional" and _is_text(column.type):
        return as_lists([1] * len(column), _texts(column))
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not is_list or not _is_text(column.type.value_type):
        raise TypeError("lists of texts" if kind == "list" else "texts or lists of texts")
    return as_lists(pc.fill_null(pc.list_value_length(column), 0), _texts(pc.list_flatten(column)))


def as_lists(lengths: Any, values: pa.Array) -> pa.Array:
    """A list column from the length of each list and all their values in a row."""
    ends = pc.cumulative_sum(
        pa.array(lengths, pa.int64()) if isinstance(lengths, list) else lengths.cast("int64")
    )
    return pa.LargeListArray.from_arrays(pa.concat_arrays([pa.array([0], pa.int64()), ends]), values)


def _read_lines(file: Path, columns: Columns, limit: int | None) -> pa.Table:
    values: dict[str, list[Any]] = {name: [] for name in columns}
    rows: list[int] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if limit is not None and len(rows) == limit:
                break
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not an object")
                for name, kind in columns.items():
                    values[name].append(_checked(record, name, kind))
            except ValueError as error:
                raise ValueError(f"`{file}`, line {number}: {error}") from error
            rows.append(number)
    arrays = {
        name: pa.array(values[name], TEXT if kind == "text" else LIST) for name, kind in columns.items()
    }
    return _with_origin(arrays, file, rows)


def _checked(record: dict[str, Any], name: str, kind: Kind) -> str | list[str]:
    if name not in record and kind != "optional":
        raise ValueError(f"column `{name}` is missing; the row has {', '.join(record)}")
    value = record.get(name)
    if kind == "text":
        if value is None or isinstance(value, str):
            return value or ""
        raise ValueError(f"column `{name}` must hold text, got {value!r}")
    if value is None:
        return []
    if kind == "optional" and isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(item is None or isinstance(item, str) for item in value):
        return [item or "" for item in value]
    raise ValueError(f"column `{name}` must hold a list of texts, got {value!r}")
