"""Files of rows as shards that are read separately: row groups of parquet files, or JSON-lines files.

The rows are those that `read_table` returns, with the same errors, since both share the code that reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from fanoise_lightning.data.rows.columns import Columns, check_columns, is_lines, with_origin
from fanoise_lightning.data.rows.lines import open_lines, read_lines
from fanoise_lightning.data.rows.tables import reading_parquet

__all__ = ["CHUNK", "FileRows", "RowGroup", "Rows", "read_group", "row_groups"]

CHUNK = 64  # rows that are read from a shard at a time


class Rows(Protocol):
    """What a stream reads."""

    @property
    def num_shards(self) -> int:
        """How many shards there are."""

    def read(self, shard: int, skip: int = 0, limit: int | None = None) -> Iterator[pa.Table]:
        """At most `limit` rows of a shard after the first `skip`, in tables of at most `CHUNK` rows.

        Columns have the types of the file, see `convert`; ``file`` and ``row`` are the origin.
        """


class RowGroup(NamedTuple):
    """A row group of a parquet file.

    Args:
        file: path or URL.
        metadata: of the whole file, so that the footer is not read again for each group.
        number: of the group in the file.
        first: its first row in the file.
    """

    file: str
    metadata: pq.FileMetaData
    number: int
    first: int


class FileRows:
    """The rows of files on this machine.

    Args:
        files: parquet or JSON-lines.
        columns: the kind of each column that is wanted.

    Raises:
        ValueError: if a parquet file cannot be read, or lacks a column.
    """

    _pre_buffer = False  # see `read_group`

    def __init__(self, files: Sequence[str | Path], columns: Columns) -> None:
        self._columns = columns
        self._shards: list[RowGroup | Path] = []
        self.num_rows = 0
        for file in files:
            if is_lines(file):
                self._shards.append(Path(file))
                with open_lines(Path(file)) as lines:
                    self.num_rows += sum(bool(line.strip()) for line in lines)
            else:
                with self._opened(str(file)) as source:
                    metadata = pq.read_metadata(source)
                self._shards += row_groups(str(file), metadata, columns)
                self.num_rows += metadata.num_rows

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    def read(self, shard: int, skip: int = 0, limit: int | None = None) -> Iterator[pa.Table]:
        """See `Rows`.

        Raises:
            ValueError: for rows that cannot be read; names the file, and the line of JSON-lines.
        """
        found = self._shards[shard]
        if isinstance(found, Path):
            yield from read_lines(found, self._columns, size=CHUNK, skip=skip, limit=limit)
        else:
            with self._opened(found.file) as source:
                yield from read_group(found, source, self._columns, skip, limit, pre_buffer=self._pre_buffer)

    @contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        """A parquet file to read from; an error while it is read names the file."""
        with reading_parquet(file), closing(pa.OSFile(file)) as source:
            yield source


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
    """The rows of a row group, see `Rows.read`.

    Args:
        group: which.
        source: its file, open.
        columns: the kind of each column that is wanted.
        skip: how many rows to skip at the start.
        limit: stop after `limit` rows.
        pre_buffer: fetch all columns in a few large reads before the first row.
    """
    file = pq.ParquetFile(source, metadata=group.metadata, pre_buffer=pre_buffer)
    wanted = [name for name in file.schema_arrow.names if name in columns]
    rows = range(group.metadata.row_group(group.number).num_rows)
    rows = rows[skip:] if limit is None else rows[skip : skip + limit]
    first = 0  # of the batch, in the group
    # one thread: it runs in the background of the training, and small tables gain nothing from more
    for batch in file.iter_batches(CHUNK, row_groups=[group.number], columns=wanted, use_threads=False):
        start, stop = max(rows.start, first), min(rows.stop, first + len(batch))
        if start < stop:
            table = pa.Table.from_batches([batch.slice(start - first, stop - start)])
            yield with_origin(table, group.file, range(group.first + start, group.first + stop))
        first += len(batch)
        if first >= rows.stop:
            return
