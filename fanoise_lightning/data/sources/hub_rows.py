"""Rows of parquet files on the Hugging Face hub, read without downloading the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from fanoise_lightning.data.rows.columns import Columns
from fanoise_lightning.data.rows.shards import FileRows
from fanoise_lightning.data.sources.hub_errors import attempt, hub_errors

if TYPE_CHECKING:
    from huggingface_hub import HfFileSystem

__all__ = ["HubRows"]


class HubRows(FileRows):
    """The rows of parquet files on the hub.

    `huggingface_hub` repeats a read that fails; an error means that it failed for good.

    Args:
        sizes: the size of each file in bytes, ``None`` if unknown, by the file's URL.
        columns: the kind of each column to read.

    Raises:
        HubError: if a file cannot be read; names it.
        ValueError: if a file lacks a column.
    """

    _pre_buffer = True

    def __init__(self, sizes: Mapping[str, int | None], columns: Columns) -> None:
        self._sizes = sizes
        super().__init__(list(sizes), columns)

    @contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        # opening asks whether the repository exists, and the library does not repeat that request
        with hub_errors(f"`{file}`"), attempt(partial(self._open, file), f"`{file}`") as source:
            yield source

    def _open(self, file: str) -> Any:
        # without the size, the library asks for it and waits without a limit;
        # no cache: Arrow asks for what it needs in large parts
        return _file_system()().open(file, size=self._sizes[file], cache_type="none")


@cache
def _file_system() -> type[HfFileSystem]:
    from huggingface_hub import HfFileSystem

    class FilesOnly(HfFileSystem):
        def isdir(self, path: str) -> bool:
            return False  # instead of asking the hub before the first read, and waiting without a limit

    return FilesOnly
