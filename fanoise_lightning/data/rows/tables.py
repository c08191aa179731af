"""Files of rows as Arrow tables: parquet, shards of it, or JSON-lines, with text and image columns.

Rows stay in columns: a million of them are a handful of buffers, which forked workers share. Every row
keeps its file and its number there, so that an error found later can name them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lightning.fabric.utilities.rank_zero import rank_zero_warn

from fanoise_lightning.data.rows.columns import (
    SINGLE,
    TEXT,
    Columns,
    Kind,
    as_lists,
    check_columns,
    is_lines,
    nothing,
    where,
    with_origin,
)
from fanoise_lightning.data.rows.embedded import EmbeddedImages, KeyedBytes, holds_images, to_keys
from fanoise_lightning.data.rows.lines import read_lines

__all__ = ["convert", "find_subsets", "is_text", "read_table", "reading_parquet", "subset_name"]

SHARDS = "[!.]*.parquet"  # not the ._a.parquet that macOS writes
LINES = 10_000  # lines of a JSON-lines file that are Python objects at a time

_EXPECTED: Mapping[Kind, str] = {
    "id": "texts or whole numbers",
    "text": "text",
    "optional text": "text",
    "texts": "lists of texts",
    "optional texts": "texts or lists of texts",
    "image": "paths or images (bytes, or a struct of bytes and path)",
    "optional image": "paths or images (bytes, or a struct of bytes and path)",
    "images": "lists of paths or images (bytes, or a struct of bytes and path)",
    "optional images": "paths, images (bytes, or a struct of bytes and path), or lists of them",
}


def find_subsets(folder: Path) -> dict[str, Path]:
    """The subsets in a folder by name.

    A subset is ``<name>.parquet``, ``<name>.jsonl``, ``<name>.jsonl.gz`` or a folder ``<name>/`` of parquet
    files. Hidden files are ignored, and anything else with a warning.

    Raises:
        ValueError: if a subset appears in two forms.
    """
    found: dict[str, Path] = {}
    others: list[str] = []
    for path in sorted(folder.glob("*")):
        if path.name.startswith("."):
            continue
        is_shards = path.is_dir() and any(path.glob(SHARDS))
        if not is_shards and (path.is_dir() or not (_is_parquet(path) or is_lines(path))):
            others.append(path.name)
            continue
        name = path.name if is_shards else subset_name(path)
        if name in found:
            raise ValueError(f"subset `{name}` appears twice: `{found[name]}` and `{path}`; remove one")
        found[name] = path
    if others:
        rank_zero_warn(
            f"`{folder}`: {', '.join(others)} ignored: a subset is a .parquet, .jsonl or .jsonl.gz file, "
            "or a folder of .parquet files"
        )
    return found


def subset_name(file: Path) -> str:
    """The name of a file of rows without its suffix.

    Example:
        >>> subset_name(Path("train/mine.jsonl.gz"))
        'mine'
    """
    return Path(file.stem).stem if is_lines(file) and file.suffix.lower() == ".gz" else file.stem


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def read_table(
    path: Path | Sequence[Path], columns: Columns, limit: int | None = None
) -> tuple[pa.Table, EmbeddedImages | None]:
    """Read the `columns` of a file or a folder of shards, and the origin of each row.

    Args:
        path: a ``.parquet``, ``.jsonl`` or ``.jsonl.gz`` file, a folder of ``.parquet`` files, read in the
            order of their names, or files in an order of your own.
        columns: the kind of each column that is wanted.
        limit: read only the first `limit` rows.

    Returns:
        A table with text columns as text (``""`` for nothing), other columns as lists of texts, and the
        columns ``file`` and ``row``. Images are paths in the table; if rows hold the images themselves, the
        table has their keys, and the images are returned separately.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unreadable file or row, a missing column or a wrong type; names file, row and
            column.
    """
    files = [path] if isinstance(path, Path) else path
    if missing := [file for file in files if not file.exists()]:
        raise FileNotFoundError(f"`{missing[0]}` does not exist")
    if isinstance(path, Path) and path.is_dir():
        files = sorted(path.glob(SHARDS))
    tables: list[pa.Table] = []
    images: list[KeyedBytes] = []
    left = limit
    for file in files:
        if is_lines(file):
            parts = list(read_lines(file, columns, size=LINES, limit=left))
        else:
            parts = [convert(_read_parquet(file, columns, left), columns, images)]
        tables += parts
        left = None if left is None else left - sum(map(len, parts))
        if left == 0:
            break
    if not files:
        raise ValueError(f"`{path}` holds no .parquet file")
    return pa.concat_tables(tables).combine_chunks(), EmbeddedImages(images) if images else None


@contextmanager
def reading_parquet(file: str | Path) -> Iterator[None]:
    """Turn Arrow's errors about a file on this machine into one that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"`{file}` cannot be read as parquet: {error}") from error


def _read_parquet(file: Path, columns: Columns, limit: int | None) -> pa.Table:
    with reading_parquet(file), pq.ParquetFile(file) as opened:
        names = opened.schema_arrow.names
        check_columns(names, columns, file)
        table = opened.read(columns=[name for name in names if name in columns]).slice(0, limit)
    return with_origin(table, file, range(len(table)))


def convert(table: pa.Table, columns: Columns, images: list[KeyedBytes]) -> pa.Table:
    """The `columns` of a table from one file, in the types that `read_table` returns.

    Args:
        table: any columns of the file, and ``file`` and ``row``, which are kept.
        columns: the kind of each column that is wanted.
        images: embedded images of the rows are appended to it.

    Raises:
        ValueError: for a wrong type, or a text that is not Unicode.
    """
    result: dict[str, pa.Array] = {}
    for name, kind in columns.items():
        if name not in table.column_names:
            result[name] = nothing(kind, len(table))
            continue
        column = table[name]
        if not _is_kind(column.type, kind):
            file = f"`{table['file'][0].as_py()}`: " if len(table) else ""
            raise ValueError(f"{file}column `{name}` must hold {_EXPECTED[kind]}, found {column.type}")
        # chunk by chunk: bytes of more than 2 GiB do not fit into one
        chunks = column.chunks or [pa.array([], column.type)]
        try:
            result[name] = pa.concat_arrays([_read_chunk(chunk, kind, images) for chunk in chunks])
        except pa.ArrowInvalid as error:
            at = _find_broken(table, name)
            raise ValueError(f"{at}: column `{name}` holds text that is not UTF-8; repair the row") from error
    return pa.table({**result, "file": table["file"], "row": table["row"]})


def _find_broken(table: pa.Table, name: str) -> str:
    """The first row whose text in a column Python cannot read."""
    for index, value in enumerate(table[name]):
        try:
            value.as_py()
        except UnicodeDecodeError:
            return where(table, index)
    return f"`{table['file'][0].as_py()}`"


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts, or nothing."""
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
        or (pa.types.is_dictionary(kind) and is_text(kind.value_type))
    )


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _is_kind(found: pa.DataType, kind: Kind) -> bool:
    if _is_list(found):
        if kind in SINGLE:
            return False
        found = found.value_type
    elif kind in ("texts", "images"):
        return False
    if kind == "id" and pa.types.is_integer(found):
        return True
    return is_text(found) or ("image" in kind and holds_images(found))


def _read_chunk(column: pa.Array, kind: Kind, images: list[KeyedBytes]) -> pa.Array:
    values = pc.list_flatten(column) if _is_list(column.type) else column
    if holds_images(values.type):
        values, part = to_keys(values)
        images.append(part)
    if pa.types.is_dictionary(values.type):  # Arrow cannot cast those of polars
        values = values.dictionary.cast(TEXT).take(values.indices)
    values = pc.fill_null(values.cast(TEXT), "")
    values.validate(full=True)  # parquet files may call any bytes text
    if kind in SINGLE:
        return values
    if _is_list(column.type):
        return as_lists(pc.fill_null(pc.list_value_length(column), 0), values)
    return as_lists(pa.array(np.ones(len(column), np.int64)), values)
