"""Rows of parquet files on the Hugging Face hub, read where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fanoise_lightning.data.rows.columns import Columns
from fanoise_lightning.data.rows.shards import RowGroup, read_group, row_groups
from fanoise_lightning.data.sources.hub_errors import attempt

__all__ = ["HubRows"]


class HubRows:
    """The rows of parquet files on the hub. What fails in a way that may pass is tried again.

    Args:
        files: the URL of each, and its size in bytes if that is known.
        columns: the kind of each column that is wanted.

    Raises:
        HubError: if a file cannot be read; names it.
        ValueError: if it lacks a column.
    """

    def __init__(self, files: Mapping[str, int | None], columns: Columns) -> None:
        self._sizes, self._columns = files, columns
        self._shards: list[RowGroup] = []
        self.num_rows = 0
        for file in files:
            metadata = attempt(partial(self._metadata, file), f"`{file}`")
            self._shards += row_groups(file, metadata, columns)
            self.num_rows += metadata.num_rows

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return len(self._shards)

    def read(self, shard: int, skip: int = 0, limit: int | None = None) -> Iterator[pa.Table]:
        """See `Rows`.

        Raises:
            HubError: if it fails again and again; names the file.
        """
        group, done = self._shards[shard], 0
        tables: Iterator[pa.Table] | None = None

        def step() -> pa.Table | None:
            nonlocal tables
            try:
                tables = tables or self._open(group, skip + done, limit and limit - done)
                return next(tables, None)
            except BaseException:
                tables = None  # open it anew
                raise

        what = f"`{group.file}`, row group {group.number}"
        while limit is None or done < limit:
            if (table := attempt(step, f"{what} behind row {skip + done}")) is None:
                return
            done += len(table)
            yield table

    def _open(self, group: RowGroup, skip: int, limit: int | None) -> Iterator[pa.Table]:
        with self._file(group.file) as source:
            yield from read_group(group, source, self._columns, skip, limit, pre_buffer=True)

    def _metadata(self, file: str) -> pq.FileMetaData:
        with self._file(file) as source:
            return pq.read_metadata(source)

    def _file(self, file: str) -> Any:
        from huggingface_hub import HfFileSystem

        # the size saves a request for it; no cache: Arrow asks for what it needs in large parts
        return HfFileSystem().open(file, size=self._sizes[file], cache_type="none")
