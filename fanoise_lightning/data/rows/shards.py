"""Files of rows in shards that are read by themselves: a row group of a parquet file, or a JSON-lines file.

The rows are those that `read_table` returns, with the same errors: both ways share the code that reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from fanoise_lightning.data.rows.columns import Columns, check_columns, is_lines, with_origin
from fanoise_lightning.data.rows.lines import open_lines, read_lines
from fanoise_lightning.data.rows.tables import reading_parquet

__all__ = ["CHUNK", "FileRows", "RowGroup", "Rows", "read_group", "row_groups"]

CHUNK = 64  # rows that are taken from a shard at a time


class Rows(Protocol):
    """What a stream reads."""

    @property
    def num_shards(self) -> int:
        """How many shards there are."""

    def read(self, shard: int, skip: int = 0, limit: int | None = None) -> Iterator[pa.Table]:
        """The rows of a shard behind the first `skip`, at most `limit`, in tables of at most `CHUNK` rows.

        Columns have the types that they are stored in, see `convert`; ``file`` and ``row`` tell the origin.
        """


class RowGroup(NamedTuple):
    """A row group of a parquet file."""

    file: str
    metadata: pq.FileMetaData  # of the whole file: the footer is not read again for each of its groups
    number: int
    first: int  # its first row in the file


class FileRows:
    """The rows of files on this machine.

    Args:
        files: parquet or JSON-lines.
        columns: the kind of each column that is wanted.

    Raises:
        ValueError: if a parquet file cannot be read, or lacks a column.
    """

    def __init__(self, files: Sequence[Path], columns: Columns) -> None:
        self._columns = columns
        self._shards: list[RowGroup | Path] = []
        self.num_rows = 0
        for file in files:
            if is_lines(file):
                self._shards.append(file)
                with open_lines(file) as lines:
                    self.num_rows += sum(bool(line.strip()) for line in lines)
            else:
                with reading_parquet(file):
                    metadata = pq.read_metadata(file)
                self._shards += row_groups(str(file), metadata, columns)
                self.num_rows += metadata.num_rows

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    def read(self, shard: int, skip: int = 0, limit: int | None = None) -> Iterator[pa.Table]:
        """See `Rows`.

        Raises:
            ValueError: for rows that cannot be read; names the file, and of JSON-lines the line.
        """
        found = self._shards[shard]
        if isinstance(found, Path):
            yield from read_lines(found, self._columns, size=CHUNK, skip=skip, limit=limit)
        else:
            with reading_parquet(found.file), closing(pa.OSFile(found.file)) as source:
                yield from read_group(found, source, self._columns, skip, limit)


def row_groups(file: str, metadata: pq.FileMetaData, columns: Columns) -> list[RowGroup]:
    """The row groups of a file.

    Raises:
        ValueError: if one of the `columns` is missing.
    """
    check_columns(metadata.schema.to_arrow_schema().names, columns, file)
    groups, first = [], 0
    for number in range(metadata.num_row_groups):
        groups.append(RowGroup(file, metadata, number, first))
        first += metadata.row_group(number).num_rows
    return groups


def read_group(
    group: RowGroup,
    source: Any,
    columns: Columns,
    skip: int,
    limit: int | None = None,
    *,
    pre_buffer: bool = False,
) -> Iterator[pa.Table]:
    """The rows of a row group as in `Rows.read`.

    Args:
        group: which.
        source: its file, open.
        columns: the kind of each column that is wanted.
        skip: leave out the first `skip` rows.
        limit: stop after `limit` rows.
        pre_buffer: fetch all columns in few large reads before the first row.
    """
    file = pq.ParquetFile(source, metadata=group.metadata, pre_buffer=pre_buffer)
    wanted = [name for name in file.schema_arrow.names if name in columns]
    end = None if limit is None else skip + limit
    first = 0
    # one thread: it runs in the background of the training, and small tables gain nothing from more
    for batch in file.iter_batches(CHUNK, row_groups=[group.number], columns=wanted, use_threads=False):
        at = max(skip - first, 0)
        table = pa.Table.from_batches([batch]).slice(at, None if end is None else max(end - first - at, 0))
        if len(table):
            start = group.first + first + at
            yield with_origin(table, group.file, range(start, start + len(table)))
        first += len(batch)
        if end is not None and first >= end:
            return
