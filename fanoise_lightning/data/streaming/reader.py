"""Rows from streams, read one block ahead in the background."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Generator
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple
from weakref import WeakSet

import pyarrow as pa
from lightning.fabric.utilities.rank_zero import rank_zero_warn

from fanoise_lightning.data.rows.cleaning import skipped_rows, stray_placeholders
from fanoise_lightning.data.rows.embedded import EmbeddedImages
from fanoise_lightning.data.rows.records import TrainRows
from fanoise_lightning.data.rows.references import Reference, list_negatives
from fanoise_lightning.data.streaming.blocks import Block, Position, StreamBlocks, TrainStream

__all__ = ["StreamReader", "StreamRow", "TrainStream"]

EXIT_TIMEOUT = 5.0  # seconds that an exiting process waits for blocks that are being read


class StreamRow(NamedTuple):
    """A row on its way to a worker: checked, its images not opened yet."""

    subset: int
    file: str
    row: int
    query: Reference
    target: Reference
    negatives: list[Reference]


@dataclass
class Findings:
    """What a reader noticed in the blocks that it gave out.

    Args:
        ended: where passes ended.
        empty: rows that were skipped because they are empty.
        first_empty: the first of them.
    """

    ended: list[Position] = field(default_factory=list)
    empty: int = 0
    first_empty: str | None = None

    def add(self, block: Block, before: Position | None) -> None:
        """Take note of a block, and of the end of the one before it."""
        if before is not None and before.pass_number < block.start.pass_number:
            self.ended.append(before)
        self.empty += block.end.empty - block.start.empty
        self.first_empty = self.first_empty or block.first_empty

    def describe(self, name: str, share: int) -> str:
        """A line about passes that were shorter than the `share` of this rank, and rows that were skipped."""
        lines = []
        if short := [end.kept for end in self.ended if end.kept < share]:
            lines.append(
                f"subset `{name}` ended after {min(short)} of the {share} rows declared for this process, "
                f"and started again ({len(short)} times)"
            )
        if self.first_empty is not None:
            lines.append(skipped_rows(name, str(self.empty), self.first_empty))
        return "; ".join(lines)


class StreamReader:
    """Gives out this rank's rows of a stream, pass after pass, and meanwhile reads one block ahead.

    Args:
        stream: the rows.
        subset: the index of their subset.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
        shuffle_block: rows of a block.
        prepare: called with the image paths of the first block and the name of the subset.
    """

    def __init__(
        self,
        stream: TrainStream,
        subset: int,
        *,
        seed: int,
        rank: int,
        world_size: int,
        shuffle_block: int,
        prepare: Callable[[pa.Array, str], None],
    ) -> None:
        self.stream, self.subset, self.world_size = stream, subset, world_size
        self._open = partial(
            StreamBlocks, stream, seed=seed, rank=rank, world_size=world_size, shuffle_block=shuffle_block
        )
        self._source: StreamBlocks | None = None
        self._blocks: Generator[Block] | None = None
        self._block: Block | None = None
        self._rows: list[StreamRow] = []
        self._next: Future[Block] | None = None
        self._found = Findings()
        self._prepare = prepare
        self._warned: set[str] = set()
        self._start, self._place = Position(), 0
        _READERS.add(self)

    @property
    def position(self) -> Position:
        """The position after the row that was given out last."""
        return self._start._replace(place=self._place)

    def seek(self, position: Position) -> None:
        """Continue at `position`: start reading its block, unless it is at hand."""
        if self._next is None or position != self.position:
            self.close()
            self._start, self._place = position, position.place
            self._source = self._open()
            self._blocks = self._source.read(position._replace(place=0))
            self._next = _next_block(self._blocks, self.stream.name)

    def stop(self) -> None:
        """Tell the background thread to stop, without waiting for it."""
        if self._source is not None:
            self._source.stopped.set()

    def close(self, wait: float = 0) -> None:
        """Stop reading, and wait up to `wait` seconds for it; ``seek`` opens the stream again."""
        self.stop()
        if self._blocks is not None and self._next is not None:
            futures.wait([self._next], timeout=max(wait, 0))
            if self._next.done():
                self._blocks.close()
        self._source = self._blocks = self._block = self._next = None
        self._rows = []

    def take(self) -> StreamRow:
        """The next row.

        Raises:
            ValueError: if the stream has wrong columns or rows, or none.
            HubError: if reading from the hub fails; names the subset and the file.
        """
        while self._block is None or self._place >= len(self._rows):
            self._begin_block()
        row, embedded = self._rows[self._place], self._block.rows.embedded
        self._place += 1
        return row if embedded is None else _with_images(row, embedded)

    def _begin_block(self) -> None:
        assert self._next is not None
        assert self._blocks is not None
        before, block = self._block, self._next.result()
        self._next = _next_block(self._blocks, self.stream.name)
        self._block, self._rows = block, _list_rows(block.rows, self.subset)
        if before is None:
            self._prepare(block.rows.paths, block.rows.name)
        else:  # the first block may be resumed in the middle
            self._place = 0
        self._start = block.start
        self._found.add(block, None if before is None else before.end)
        self._warn_of_placeholders(block)

    def _warn_of_placeholders(self, block: Block) -> None:
        for column, count in block.strays.items():
            if count and column not in self._warned:
                self._warned.add(column)
                message = stray_placeholders(self.stream.name, column, count)
                rank_zero_warn(f"{message}; further ones are not reported")

    def report(self) -> str:
        """What was noticed about the rows since the last report; ``""`` for nothing."""
        found, self._found = self._found, Findings()
        return found.describe(self.stream.name, len(self.stream) // self.world_size)


def _list_rows(rows: TrainRows, subset: int) -> list[StreamRow]:
    """The rows of a block for the workers; all at once, which is several times as fast as one by one."""
    table = rows.table
    columns = zip(
        table["file"].to_pylist(),
        table["row"].to_pylist(),
        rows.queries.to_list(),
        rows.targets.to_list(),
        table["neg_text"].to_pylist(),
        table["neg_image_path"].to_pylist(),
    )
    return [
        StreamRow(subset, file, row, query, target, list_negatives(texts, images))
        for file, row, query, target, texts, images in columns
    ]


def _with_images(row: StreamRow, embedded: EmbeddedImages) -> StreamRow:
    """The row with the bytes of its embedded images in place of their keys."""

    def with_bytes(reference: Reference) -> Reference:
        data = embedded.get(reference.image)  # type: ignore[arg-type]
        return reference if data is None else Reference(reference.text, data)

    return row._replace(
        query=with_bytes(row.query),
        target=with_bytes(row.target),
        negatives=[with_bytes(negative) for negative in row.negatives],
    )


def _next_block(blocks: Generator[Block], name: str) -> Future[Block]:
    """The next block, read in a thread of its own; ``result()`` raises an error that occurs there."""
    future: Future[Block] = Future()

    def read() -> None:
        try:
            future.set_result(next(blocks))
        except BaseException as error:
            future.set_exception(error)

    # a daemon: a thread that waits for a dead connection must not keep the process alive
    thread = threading.Thread(target=read, name=f"read {name}", daemon=True)
    thread.start()
    return future


_READERS: WeakSet[StreamReader] = WeakSet()


@atexit.register
def _close_readers() -> None:
    # the interpreter should meet neither a thread nor an open file of Arrow's when it shuts down
    deadline = time.monotonic() + EXIT_TIMEOUT
    readers = list(_READERS)
    for reader in readers:
        reader.stop()
    for reader in readers:
        reader.close(wait=deadline - time.monotonic())
