"""JSON-lines as Arrow tables: every row is checked by itself, and no type is guessed from other rows."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as arrow_json

from fanoise_lightning.data.rows.columns import (
    LIST,
    SINGLE,
    TEXT,
    Columns,
    Kind,
    as_lists,
    place,
    with_origin,
)

__all__ = ["join_lines", "open_lines", "read_lines"]


def read_lines(
    file: Path, columns: Columns, *, size: int, skip: int = 0, limit: int | None = None
) -> Iterator[pa.Table]:
    """The rows of a JSON-lines file as `read_table` returns them, in one or more tables of `size` rows.

    Args:
        file: the file.
        columns: the kind of each column that is wanted.
        size: rows of a table; the last one may have fewer.
        skip: how many rows to skip at the start.
        limit: stop after `limit` rows; the lines after them are not read.

    Raises:
        ValueError: for a row that cannot be read; names file and line.
    """
    with open_lines(file) as lines:
        rows = ((number, line) for number, line in enumerate(lines, start=1) if not line.isspace())
        wanted = islice(rows, skip, None if limit is None else skip + limit)
        yield _parse_lines(list(islice(wanted, size)), file, columns)
        while part := list(islice(wanted, size)):
            yield _parse_lines(part, file, columns)


@contextmanager
def open_lines(file: Path) -> Iterator[Iterable[bytes]]:
    """The lines of a JSON-lines file, which may be compressed with gzip.

    Raises:
        ValueError: if it cannot be decompressed; names it.
    """
    if file.suffix.lower() != ".gz":
        with file.open("rb") as lines:
            yield lines
        return
    try:
        with gzip.open(file) as lines:
            yield lines
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"`{file}` cannot be unpacked, or is truncated: {error}; fetch it again") from error


def join_lines(lines: Sequence[bytes]) -> bytes:
    """Lines of one file in one piece; only the last line of a file may lack its end."""
    data = b"".join(lines)
    return data if data.endswith(b"\n") else data + b"\n"


def _parse_lines(lines: Sequence[tuple[int, bytes]], file: Path, columns: Columns) -> pa.Table:
    numbers = [number for number, _ in lines]
    if (table := _parse_fast([line for _, line in lines], columns)) is not None:
        return with_origin(table, file, numbers)
    values: dict[str, list[Any]] = {name: [] for name in columns}
    for number, line in lines:
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
            for name, kind in columns.items():
                values[name].append(_checked(record, name, kind))
        except UnicodeDecodeError as error:
            cause = f"it is not in UTF-8 ({error}): save the file as UTF-8"
            raise ValueError(f"{place(str(file), number)}: {cause}") from error
        except ValueError as error:
            raise ValueError(f"{place(str(file), number)}: {error}") from error
        except RecursionError:
            raise ValueError(f"{place(str(file), number)}: nested too deeply to be read") from None
    arrays: dict[str, pa.Array] = {}
    for name, kind in columns.items():
        try:
            arrays[name] = pa.array(values[name], TEXT if kind in SINGLE else LIST)
        except UnicodeEncodeError:
            number = next(number for number, value in zip(numbers, values[name]) if not _is_unicode(value))
            raise ValueError(
                f"{place(str(file), number)}: column `{name}` holds half of a surrogate pair, which is not a "
                r"character: repair the `\ud...` escape"
            ) from None
    return with_origin(pa.table(arrays), file, numbers)


def _parse_fast(lines: Sequence[bytes], columns: Columns) -> pa.Table | None:
    """The rows by Arrow, ``None`` if it cannot read them, or might take a wrong row for a right one."""
    data = join_lines(lines)
    types = {name: TEXT if kind in SINGLE else LIST for name, kind in columns.items()}
    parse = arrow_json.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore")
    read = arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1)
    try:
        table = arrow_json.read_json(io.BytesIO(data), read_options=read, parse_options=parse)
        table.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    if len(table) != len(lines):
        return None
    arrays: dict[str, pa.Array] = {}
    for name, kind in columns.items():
        column = table[name].combine_chunks()
        # Arrow takes a missing column for a null
        strict = column.null_count and not kind.startswith("optional")
        if strict and data.count(json.dumps(name).encode()) < len(lines):
            return None
        if kind not in SINGLE:
            if pc.list_flatten(column).null_count:
                return None
            column = as_lists(pc.fill_null(pc.list_value_length(column), 0), pc.list_flatten(column))
        arrays[name] = pc.fill_null(column, "") if kind in SINGLE else column
    return pa.table(arrays)


def _is_unicode(value: str | list[str]) -> bool:
    try:
        "".join(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(record: dict[str, Any], name: str, kind: Kind) -> str | list[str]:
    if name not in record and not kind.startswith("optional"):
        raise ValueError(f"column `{name}` is missing; the row has {_names(record)}")
    value = record.get(name)
    if kind == "id" and type(value) is int:
        return str(value)
    if kind in SINGLE:
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


def _names(record: dict[str, Any]) -> str:
    # a name may hold half of a surrogate pair
    return ", ".join(record).encode(errors="backslashreplace").decode()
