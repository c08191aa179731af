"""Files of rows as Arrow tables: parquet, shards of it, or JSON-lines, with columns of texts and pictures,
one a row or lists of them.

Rows stay columnar: a million of them are a handful of buffers, which forked workers share. Every row
remembers the file and the row that it came from, so that an error found later can name them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fanoise_lightning.data.embedded import EmbeddedPictures, Part, holds_pictures, to_keys

__all__ = ["Columns", "Kind", "as_lists", "find_subsets", "read_table", "where"]

# optional: the column may be missing, and holds one or a list
Kind = Literal["text", "texts", "optional texts", "picture", "pictures", "optional pictures"]
Columns = Mapping[str, Kind]

TEXT = pa.large_string()
LIST = pa.large_list(TEXT)

_EXPECTED: Mapping[Kind, str] = {
    "text": "text",
    "texts": "lists of texts",
    "optional texts": "texts or lists of texts",
    "picture": "paths or pictures (bytes, or a struct of bytes and path)",
    "pictures": "lists of paths or pictures (bytes, or a struct of bytes and path)",
    "optional pictures": "paths, pictures (bytes, or a struct of bytes and path), or lists of them",
}


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


def read_table(
    path: Path | Sequence[Path], columns: Columns, limit: int | None = None
) -> tuple[pa.Table, EmbeddedPictures | None]:
    """Read the `columns` of a file or a folder of shards, and where each row came from.

    Args:
        path: a ``.parquet`` or ``.jsonl`` file, a folder of ``.parquet`` files, read in the order of their
            names, or files in an order of your own.
        columns: the kind of each column that is wanted.
        limit: read the first `limit` rows only.

    Returns:
        Text columns as text (nothing is ``""``), the others as lists of texts, and the columns ``file`` and
        ``row``. Pictures are their paths; where the rows hold the pictures themselves, keys stand for them in
        the table, and the pictures come beside it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unreadable file or row, a missing column or a wrong type; names file, row and
            column.
    """
    files = [path] if isinstance(path, Path) else path
    if missing := [file for file in files if not file.exists()]:
        raise FileNotFoundError(f"`{missing[0]}` does not exist")
    if isinstance(path, Path) and path.is_dir():
        files = sorted(path.glob("*.parquet"))
    tables: list[pa.Table] = []
    pictures: list[Part] = []
    left = limit
    for file in files:
        if file.suffix == ".jsonl":
            table = _read_lines(file, columns, left)
        else:
            table = _read_parquet(file, columns, left, pictures)
        tables.append(table)
        left = None if left is None else left - len(table)
        if left == 0:
            break
    if not tables:
        raise ValueError(f"`{path}` holds no .parquet file")
    return pa.concat_tables(tables).combine_chunks(), EmbeddedPictures(pictures) if pictures else None


def where(table: pa.Table, index: int) -> str:
    """The file and the row of the file that row `index` of `table` came from, for messages."""
    file, row = table["file"][index].as_py(), table["row"][index].as_py()
    return f"`{file}`, {'line' if file.endswith('.jsonl') else 'row'} {row}"


def _with_origin(columns: dict[str, pa.Array], file: Path, rows: Any) -> pa.Table:
    origin = pa.DictionaryArray.from_arrays(pa.array([0] * len(rows), pa.int32()), pa.array([str(file)]))
    return pa.table({**columns, "file": origin, "row": pa.array(rows, pa.int64())})


def _read_parquet(file: Path, columns: Columns, limit: int | None, pictures: list[Part]) -> pa.Table:
    try:
        names = pq.read_schema(file).names
        _check_names(names, columns, f"`{file}`")
        table = pq.read_table(file, columns=[name for name in names if name in columns])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"`{file}` cannot be read as parquet: {error}") from error
    table = table.slice(0, limit)
    return _with_origin(convert(table, columns, f"`{file}`", pictures), file, range(len(table)))


def convert(table: pa.Table, columns: Columns, source: str, pictures: list[Part]) -> dict[str, pa.Array]:
    """The `columns` of a table as they came from parquet, in the types that `read_table` returns.

    Args:
        table: whatever columns there are.
        columns: the kind of each column that is wanted.
        source: what to call the table in messages.
        pictures: the pictures that the rows hold are appended here.

    Raises:
        ValueError: for a missing column or a wrong type.
    """
    _check_names(table.column_names, columns, source)
    result: dict[str, pa.Array] = {}
    for name, kind in columns.items():
        if name not in table.column_names:
            result[name] = pa.array([[]] * len(table), LIST)
            continue
        column = table[name]
        if not _is_kind(column.type, kind):
            raise ValueError(f"{source}: column `{name}` must hold {_EXPECTED[kind]}, found {column.type}")
        # chunk by chunk: bytes of more than 2 GiB do not fit into one
        chunks = column.chunks or [pa.array([], column.type)]
        result[name] = pa.concat_arrays([_read_chunk(chunk, kind, pictures) for chunk in chunks])
    return result


def _check_names(names: Sequence[str], columns: Columns, source: str) -> None:
    for name, kind in columns.items():
        if name not in names and not kind.startswith("optional"):
            raise ValueError(f"{source}: column `{name}` is missing; the file has {', '.join(names)}")


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
        or (pa.types.is_dictionary(kind) and _is_text(kind.value_type))
    )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_kind(found: pa.DataType, kind: Kind) -> bool:
    if _is_list(found):
        if kind in ("text", "picture"):
            return False
        found = found.value_type
    elif kind in ("texts", "pictures"):
        return False
    return _is_text(found) or ("picture" in kind and holds_pictures(found))


def _read_chunk(column: pa.Array, kind: Kind, pictures: list[Part]) -> pa.Array:
    values = pc.list_flatten(column) if _is_list(column.type) else column
    if holds_pictures(values.type):
        values, part = to_keys(values)
        pictures.append(part)
    values = pc.fill_null(values.cast(TEXT), "")
    if kind in ("text", "picture"):
        return values
    one_each = pa.array(np.ones(len(column), np.int64))
    return as_lists(
        pc.fill_null(pc.list_value_length(column), 0) if _is_list(column.type) else one_each, values
    )


def as_lists(lengths: pa.Array, values: pa.Array) -> pa.Array:
    """A list column from the length of each list and all their values in a row."""
    ends = pc.cumulative_sum(lengths.cast("int64"))
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
        name: pa.array(values[name], TEXT if kind in ("text", "picture") else LIST)
        for name, kind in columns.items()
    }
    return _with_origin(arrays, file, rows)


def _checked(record: dict[str, Any], name: str, kind: Kind) -> str | list[str]:
    if name not in record and not kind.startswith("optional"):
        raise ValueError(f"column `{name}` is missing; the row has {', '.join(record)}")
    value = record.get(name)
    if kind in ("text", "picture"):
        if value is None or isinstance(value, str):
            return value or ""
        raise ValueError(f"column `{name}` must hold text, got {value!r}")
    if value is None:
        return []
    if kind.startswith("optional") and isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(item is None or isinstance(item, str) for item in value):
        return [item or "" for item in value]
    raise ValueError(f"column `{name}` must hold a list of texts, got {value!r}")
