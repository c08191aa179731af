"""Files of rows: JSON-lines, JSON, parquet and shards of it, CSV and TSV."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from fanoise_lightning.data.rows.columns import TEXT, Columns, Kind, check_columns, is_lines
from fanoise_lightning.data.rows.embedded import EmbeddedImages, holds_images
from fanoise_lightning.data.rows.lines import open_lines, parse_objects, read_lines
from fanoise_lightning.data.rows.tables import SHARDS, is_text, read_table, reading_parquet
from fanoise_lightning.data.sources.memory import open_list
from fanoise_lightning.data.sources.source import (
    SAMPLE,
    Source,
    has_value,
    kinds_of_records,
    kinds_of_tables,
    read_from,
    suffixes,
)

__all__ = ["SUFFIXES", "find_delimiter", "is_file_of_rows", "open_file", "open_shards"]

_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", *_TABLES)


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
    if name.endswith(_TABLES):
        return _open_csv(file)
    raise ValueError(
        f"`{file}` is no file of rows: expected one that ends in {', '.join(SUFFIXES)}; rename it if it is "
        "one of these, or pass what `pandas` or `datasets` makes of it (Excel, WebDataset)"
    )


def open_shards(folder: Path) -> Source:
    """A folder of ``.parquet`` files, read in the order of their names."""
    return _open_parquet(folder, sorted(folder.glob(SHARDS)))


def _open_parquet(path: Path, files: list[Path]) -> Source:
    with reading_parquet(files[0]), pq.ParquetFile(files[0]) as opened:
        schema = opened.schema_arrow
    check_columns(schema.names, dict.fromkeys(schema.names, "text"), files[0])  # none twice
    empty = schema.empty_table()
    pictures = [field.name for field in schema if _holds_images(field.type)]  # not read here
    first = next(_read_parts(files, [name for name in schema.names if name not in pictures]), empty)
    kinds = kinds_of_tables(first, lambda names: _read_parts(files, names))
    kinds |= kinds_of_tables(empty.select(pictures), lambda _: ())
    kinds = {name: kinds[name] for name in schema.names}
    return Source(str(path), kinds, lambda columns: read_table(path, columns), path.parent)


def _holds_images(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return holds_images(kind.value_type if is_list else kind)


def _read_parts(files: list[Path], names: list[str]) -> Iterator[pa.Table]:
    """Some columns of parquet files, in parts."""
    for file in files:
        with reading_parquet(file), pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(SAMPLE, columns=names):
                yield pa.Table.from_batches([batch])


def _kinds_of_lines(file: Path) -> dict[str, Kind | None]:
    """What the rows hold under each name, by its first values, wherever in the file these are."""
    filled: dict[str, bool] = {}  # whether there was a value under each name
    records: list[dict[str, Any]] = []
    block: list[bytes] = []
    with open_lines(file) as lines:
        rows = (line for line in lines if not line.isspace())
        while part := list(islice(rows, SAMPLE)):
            block = part
            if not _has_new_columns(block, filled):
                continue
            new = [
                {
                    name: value
                    for name, value in _parse(line).items()
                    if name not in filled or (not filled[name] and has_value(value))
                }
                for line in block
            ]
            for name, value in chain.from_iterable(record.items() for record in new):
                filled[name] = filled.get(name, False) or has_value(value)
            records += filter(None, new)
    if block and not filled:
        raise _no_objects(file)
    return kinds_of_records(records)


def _no_objects(file: Path) -> ValueError:
    message = f"`{file}` has no objects, one on each line; a file with one list ends in .json"
    try:
        next(read_lines(file, {}, size=SAMPLE))
    except ValueError as error:  # the first line may be broken, or in another encoding
        message += f"; {error}"
    return ValueError(message)


def _has_new_columns(lines: list[bytes], filled: Mapping[str, bool]) -> bool:
    """Whether lines have a name that is not in `filled`, or the first value of one; or may have."""
    try:
        table = parse_objects(lines)
    except ValueError:  # values of several types, or broken rows
        return True
    return any(
        name not in filled or _has_values(table[name]) for name in table.column_names if not filled.get(name)
    )


def _has_values(column: pa.ChunkedArray) -> bool:
    if is_text(column.type):  # a million rows as Python objects would take seconds
        return bool(pc.any(pc.not_equal(column, "")).as_py())
    return any(map(has_value, column.to_pylist()))


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
    except RecursionError:
        raise ValueError(f"`{file}` cannot be read as JSON: it is nested too deeply") from None
    if isinstance(rows, dict):
        rows = _captions_of_coco(rows) or rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        keys = f", found one object of {', '.join(rows)}" if isinstance(rows, dict) else ""
        raise ValueError(f"`{file}` must hold a list of objects, one for each row{keys}")
    opened = open_list(rows, str(file))
    return Source(str(file), opened.kinds, opened.read, file.parent)


def _captions_of_coco(found: dict[str, Any]) -> list[dict[str, str]] | None:
    """The captions of a file like COCO's, each with its picture; ``None`` for anything else."""
    try:
        files = {image["id"]: image["file_name"] for image in found["images"]}
        return [{"caption": one["caption"], "image": files[one["image_id"]]} for one in found["annotations"]]
    except (KeyError, TypeError):
        return None


def _open_csv(file: Path) -> Source:
    with _reading_csv(file) as data, csv.open_csv(data, **_csv_options(file)) as reader:
        names = reader.schema.names
    if value := next(
        (name for name in names if re.sub(r"#\d+$", "", name.lower()).endswith(suffixes())), None
    ):
        raise ValueError(
            f"`{file}` has no names of columns: its first row holds `{value}`; put a row such as "
            "image,caption before it"
        )
    if padded := next((name for name in names if name != name.strip()), None):
        raise ValueError(
            f"`{file}`: the name of the column {padded!r} begins or ends with white space; write `,` without "
            "a space after it, in all rows"
        )
    check_columns(names, dict.fromkeys(names, "text"), file)

    def parts(names: list[str]) -> Iterator[pa.Table]:
        with _reading_csv(file) as data, csv.open_csv(data, **_csv_options(file, names)) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])

    def read(columns: Columns) -> tuple[pa.Table, EmbeddedImages | None]:
        with _reading_csv(file) as data:
            rows = csv.read_csv(data, **_csv_options(file, columns))
        if not len(rows):
            raise ValueError(f"`{file}` has a header and no rows")
        return read_from(rows, str(file), first=2)(columns)  # as a spreadsheet counts: 1 is the header

    first = next(parts(names), pa.table({name: pa.array([], TEXT) for name in names}))
    return Source(str(file), kinds_of_tables(first.slice(0, SAMPLE), parts), read, file.parent)


def _csv_options(file: Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    parse = csv.ParseOptions(delimiter=find_delimiter(file), newlines_in_values=True)
    read = csv.ReadOptions(use_threads=False)  # not in parallel: only then errors have the row
    if names is None:
        return {"parse_options": parse, "read_options": read}
    # all is text: a caption may be "007", or "NA"
    types = dict.fromkeys(names, TEXT)
    convert = csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=False)
    return {"parse_options": parse, "convert_options": convert, "read_options": read}


def find_delimiter(file: Path) -> str:
    """What is between the names in the first row: Excel writes semicolons in half of the world."""
    with _unpacked(file) as opened:
        start = opened.read(2**16)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"`{file}` is in UTF-16: save it as UTF-8")
    header = start.splitlines()[0] if start else b""
    if header.startswith(b"sep="):
        raise ValueError(
            f"`{file}` begins with {header.decode(errors='replace')}, which is no row: remove it"
        )
    delimiters = "\t" if ".tsv" in file.name.lower() else ",;\t|"
    return next((one for one in delimiters if one.encode() in header), delimiters[0])


def _unpacked(file: Path) -> pa.NativeFile:
    # Arrow itself knows only `.gz`, not `.GZ`
    return pa.input_stream(str(file), compression="gzip" if file.suffix.lower() == ".gz" else None)


@contextmanager
def _reading_csv(file: Path) -> Iterator[pa.NativeFile]:
    try:
        with _unpacked(file) as data:
            yield data
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        advice = ""
        if isinstance(error, UnicodeDecodeError) or "UTF8" in str(error):
            advice = "; save it as UTF-8"
        elif "straddles" in str(error):
            advice = "; a quote is not closed, or a value has more than a million letters"
        raise ValueError(f"`{file}` cannot be read as a table: {error}{advice}") from error
