"""What is searched for: one query, or a file of them with their right answers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fanoise_lightning._checks import check_choice, check_names
from fanoise_lightning.data.sources.files import find_delimiter
from fanoise_lightning.sample import Sample

__all__ = ["Query", "read_queries"]

SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
COLUMNS = ("text", "image", "right")


class Query(NamedTuple):
    """A text, a picture or both, and the ids of the rows that answer it, where they are known."""

    text: str = ""
    image: Path | None = None
    right: tuple[str, ...] = ()

    def sample(self) -> Sample:
        """The query for an encoder, its picture opened.

        Raises:
            ValueError: if it is empty, or its picture is broken.
            FileNotFoundError: if there is no such picture.
        """
        if not self.text.strip() and self.image is None:
            raise ValueError("the query is empty: give a text, a picture with `--image`, or both")
        return Sample(self.text, self.image)


def read_queries(path: str | Path) -> list[Query]:
    """Read a list of queries.

    Args:
        path: text, a query per line; or JSON lines, CSV, TSV or parquet with the columns ``text``, ``image``
            (relative to the file's folder) and ``right``, the id of the right answer. JSON lines and parquet
            may give a list of several ids.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: for another kind of file, one without queries, a column that is not known, or a row that
            cannot be read or is empty; names the row.
    """
    path = Path(path).expanduser()
    check_choice("suffix", path.suffix, SUFFIXES, f"queries `{path}`: ")
    try:
        rows = list(_rows(path))
    except (ValueError, csv.Error, pa.ArrowException) as error:
        advice = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise ValueError(f"queries `{path}` cannot be read: {error}{advice}") from error
    if not rows:
        raise ValueError(f"queries `{path}`: there is none in it")
    return [_query(row, f"queries `{path}`, {where}", path.parent) for where, row in rows]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row, and where it is."""
    if path.suffix == ".parquet":
        for number, row in enumerate(pq.read_table(path, partitioning=None).to_pylist()):
            yield f"row {number}", row
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix in (".csv", ".tsv"):
            reader = csv.DictReader(file, delimiter=find_delimiter(path), strict=True)
            for row in reader:
                yield f"line {reader.line_num}", row
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", {"text": line.strip()} if path.suffix == ".txt" else json.loads(line)


def _query(row: Any, where: str, folder: Path) -> Query:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with {', '.join(COLUMNS)}, got {row!r}")
    try:
        check_names(map(str, row), COLUMNS, "column")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    text, image, right = ("" if row.get(name) is None else row[name] for name in COLUMNS)  # an id may be 0
    several = right if isinstance(right, list) else [right] if right != "" else []
    if not (isinstance(text, str) and isinstance(image, str)):
        raise ValueError(f"{where}: `text` and `image` must be strings, got {text!r} and {image!r}")
    if not text.strip() and not image:
        raise ValueError(f"{where}: the query is empty: give a `text`, an `image` or both")
    return Query(text, folder / image if image else None, tuple(dict.fromkeys(map(str, several))))
