"""Files of rows: JSON-lines, JSON, parquet and shards of it, CSV and TSV."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from fanoise_lightning.data.rows.columns import Columns, Kind, check_columns, is_lines
from fanoise_lightning.data.rows.embedded import EmbeddedImages, holds_images
from fanoise_lightning.data.rows.lines import open_lines
from fanoise_lightning.data.rows.tables import SHARDS, read_table, reading_parquet
from fanoise_lightning.data.sources.memory import open_list
from fanoise_lightning.data.sources.roles import likely_names
from fanoise_lightning.data.sources.source import SAMPLE, Source, kinds_of_records, kinds_of_table, read_from

__all__ = ["SUFFIXES", "is_file_of_rows", "open_file", "open_shards"]

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".csv.gz": ",", ".tsv.gz": "\t"}
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", *_DELIMITERS)


def is_file_of_rows(file: Path) -> bool:
    """Whether the name of a file is that of rows which can be read."""
    return file.name.lower().endswith(SUFFIXES)


def open_file(file: Path) -> Source:
    """A file of rows.

    Raises:
        ValueError: for a file of another kind, or one that cannot be read.
    """
    name = file.name.lower()
    if is_lines(file):
        return Source(
            str(file), _kinds_of_lines(file), lambda columns: _read_lines(file, columns), file.parent
        )
    if name.endswith(".parquet"):
        return _open_parquet(file, [file])
    if name.endswith(".json"):
        return _open_json(file)
    if name.endswith(tuple(_DELIMITERS)):
        return _open_csv(file)
    raise ValueError(f"`{file}` is no file of rows: expected one that ends in {', '.join(SUFFIXES)}")


def open_shards(folder: Path) -> Source:
    """A folder of ``.parquet`` files, read in the order of their names."""
    return _open_parquet(folder, sorted(folder.glob(SHARDS)))


def _open_parquet(path: Path, files: list[Path]) -> Source:
    with reading_parquet(files[0]), pq.ParquetFile(files[0]) as opened:
        schema = opened.schema_arrow
        check_columns(schema.names, dict.fromkeys(schema.names, "text"), files[0])  # none twice
        kinds = kinds_of_table(schema.empty_table())
        texts = [field.name for field in schema if kinds[field.name] and not _holds_images(field.type)]
        if texts and (first := next(opened.iter_batches(SAMPLE, columns=texts), None)) is not None:
            kinds |= kinds_of_table(pa.Table.from_batches([first]))
    return Source(str(path), kinds, lambda columns: read_table(path, columns), path.parent)


def _holds_images(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return holds_images(kind.value_type if is_list else kind)


def _kinds_of_lines(file: Path) -> dict[str, Kind | None]:
    with open_lines(file) as lines:
        records = [_parse(line) for line in islice((line for line in lines if line.strip()), SAMPLE)]
        names = likely_names({name for record in records for name in record})
        for block in iter(lambda: list(islice(lines, SAMPLE)), []):
            late = _first_with(block, names)
            records += late.values()
            names = [name for name in names if name not in late]
    return kinds_of_records(records)


def _first_with(lines: list[bytes], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The first record that has each of the names, for those that any has."""
    joined = b"".join(lines)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        quoted = json.dumps(name).encode()
        if quoted in joined:
            with_it = (record for line in lines if quoted in line and name in (record := _parse(line)))
            if (first := next(with_it, None)) is not None:
                found[name] = first
    return found


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # told with its line when the rows are read
        return {}
    return record if isinstance(record, dict) else {}


def _read_lines(file: Path, columns: Columns) -> tuple[pa.Table, EmbeddedImages | None]:
    # a row may lack a column: it then has no such text or picture
    optional: dict[str, Kind] = {"text": "optional text", "image": "optional image"}
    return read_table(file, {name: optional.get(kind, kind) for name, kind in columns.items()})


def _open_json(file: Path) -> Source:
    try:
        rows = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"`{file}` cannot be read as JSON: {error}; JSON-lines end in .jsonl") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"`{file}` must hold a list of objects, one for each row")
    opened = open_list(rows, str(file))
    return Source(str(file), opened.kinds, opened.read, file.parent)


def _open_csv(file: Path) -> Source:
    with _reading_csv(file), csv.open_csv(file, **_csv_options(file)) as reader:
        names = reader.schema.names
    with _reading_csv(file):
        options = _csv_options(file, dict.fromkeys(names, pa.large_string()))
        with csv.open_csv(file, **options) as reader:
            first = next(iter(reader), None)
    check_columns(names, dict.fromkeys(names, "text"), file)
    table = pa.table({name: pa.array([], pa.large_string()) for name in names})
    if first is not None:
        table = pa.Table.from_batches([first.slice(0, SAMPLE)])

    def read(columns: Columns) -> tuple[pa.Table, EmbeddedImages | None]:
        with _reading_csv(file):
            rows = csv.read_csv(file, **_csv_options(file, dict.fromkeys(columns, pa.large_string())))
        return read_from(rows, str(file), first=2)(columns)  # as a spreadsheet counts: 1 is the header

    return Source(str(file), kinds_of_table(table), read, file.parent)


def _csv_options(file: Path, types: dict[str, pa.DataType] | None = None) -> dict[str, Any]:
    suffix = next(suffix for suffix in _DELIMITERS if file.name.lower().endswith(suffix))
    parse = csv.ParseOptions(delimiter=_DELIMITERS[suffix], newlines_in_values=True)
    if types is None:
        return {"parse_options": parse}
    # all is text: a caption may be "007", or "NA"
    convert = csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=False)
    # not in parallel: only then errors have the row
    return {
        "parse_options": parse,
        "convert_options": convert,
        "read_options": csv.ReadOptions(use_threads=False),
    }


@contextmanager
def _reading_csv(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"`{file}` cannot be read as a table: {error}") from error
