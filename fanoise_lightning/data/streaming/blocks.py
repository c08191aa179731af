"""Streams of training rows, read in passes of shuffled shards and blocks.

A pass is the shards in an order drawn from (seed, subset, pass); inside it, blocks of rows are permuted by
(seed, subset, pass, block). Nothing is held back between blocks, so that no row is lost when a run is
stopped: where a stream stands is a handful of integers, the start of its block and the place in it, and going
on there means to read that block again.

The ranks share a pass like this, here 5 shards on 2 ranks::

    order of the shards     3   0   4   1   |   2
    rank                    0   1   0   1   |   its rows in turn: 0, 1, 0, 1, ...

Whole shards as long as every rank gets as many, and the rest row by row, which every rank reads.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import CancelledError
from dataclasses import KW_ONLY, dataclass, replace
from threading import Event
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa

from fanoise_lightning.data.rows.embedded import EmbeddedImages, Part
from fanoise_lightning.data.rows.records import TRAIN_COLUMNS, Cleaner, TrainRows, train_rows
from fanoise_lightning.data.rows.shards import CHUNK, Rows
from fanoise_lightning.data.rows.tables import convert
from fanoise_lightning.data.sources.hub_errors import HubError

__all__ = ["Block", "Position", "StreamBlocks", "TrainStream"]


@dataclass(frozen=True)
class TrainStream:
    """The training pairs of one subset, as a stream of rows with MMEB's training columns.

    Args:
        name: of the subset.
        rows: in shards. The smaller these are, the better the rows are shuffled, and the less is read again
            when a run goes on.
        num_rows: how many rows it is said to have: its share of an epoch follows from that.
        mask_same_target: pairs of a batch with the same target are not each other's negatives.
        num_samples: take the first `num_samples` rows only, in the order of the shards, which then are not
            shuffled; ``None`` for all.
        blind: drop the images of the queries.

    Raises:
        ValueError: if a number is less than 1.
    """

    name: str
    rows: Rows
    num_rows: int
    mask_same_target: bool = False
    _: KW_ONLY
    num_samples: int | None = None
    blind: bool = False

    def __post_init__(self) -> None:
        if self.num_rows == 0:
            raise ValueError(f"subset `{self.name}` is empty: no rows")
        for name, value in (("num_rows", self.num_rows), ("num_samples", self.num_samples)):
            if value is not None and value < 1:
                raise ValueError(f"subset `{self.name}`: `{name}` must be at least 1, got {value}")

    def __len__(self) -> int:
        return self.num_rows if self.num_samples is None else min(self.num_rows, self.num_samples)


class Position(NamedTuple):
    """Where a stream stands on one rank: integers alone, for a checkpoint.

    Args:
        pass_number: from 0.
        block: of the pass.
        shard: in the order of this rank's shards, at the start of the block.
        row: rows of that shard that came before the block.
        dealt: rows of the pass before the block that the ranks took in turn.
        kept: rows of the pass before the block that this rank got.
        empty: rows of the pass before the block that were skipped.
        place: in the block.
    """

    pass_number: int = 0
    block: int = 0
    shard: int = 0
    row: int = 0
    dealt: int = 0
    kept: int = 0
    empty: int = 0
    place: int = 0


@dataclass(frozen=True)
class Block:
    """Rows that were read and permuted together, and where the stream stands before and behind them."""

    rows: TrainRows
    start: Position
    end: Position
    strays: dict[str, int]  # see `Cleaner`
    first_empty: str | None


class StreamBlocks:
    """The blocks of a stream on one rank.

    Args:
        stream: the rows.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
        shuffle_block: rows of a block.

    Attributes:
        stopped: when it is set, reading ends with a `CancelledError`, in the middle of a block as well.
    """

    def __init__(
        self, stream: TrainStream, *, seed: int, rank: int, world_size: int, shuffle_block: int
    ) -> None:
        self.stream, self.rank, self.world_size = stream, rank, world_size
        self.shuffle_block = shuffle_block
        self.stopped = Event()
        self._key = (seed, crc32(stream.name.encode()))

    def read(self, start: Position) -> Generator[Block]:
        """The blocks from `start`, pass after pass, without end."""
        while True:
            tables: list[pa.Table] = []
            for table, end in self._chunks(start):
                tables.append(table)
                if sum(map(len, tables)) >= self._block_size(start):
                    yield (block := self._clean(tables, start, end))
                    start, tables = block.end, []
            if tables:
                yield (block := self._clean(tables, start, end))
                start = block.end
            if not start.kept:
                ranks = f" for rank {self.rank} of {self.world_size}" if self.world_size > 1 else ""
                lacking = f"on each of its {start.empty} rows a side lacks text and image"
                cause = lacking if start.empty else "no rows"
                raise ValueError(f"subset `{self.stream.name}` is empty{ranks}: {cause}")
            start = Position(pass_number=start.pass_number + 1)

    def _block_size(self, start: Position) -> int:
        # small blocks at first: otherwise a whole block of every subset is read before the first batch
        return (
            self.shuffle_block
            if start.pass_number
            else min(self.shuffle_block, CHUNK << min(start.block, 30))
        )

    def _chunks(self, start: Position) -> Iterator[tuple[pa.Table, Position]]:
        """This rank's rows of a pass from `start`, and where the stream stands behind them."""
        count, in_order = self.stream.rows.num_shards, self.stream.num_samples is not None
        random = np.random.default_rng([*self._key, start.pass_number])
        order = np.arange(count) if in_order else random.permutation(count)
        whole = 0 if in_order else count // self.world_size * self.world_size
        shards = [*order[:whole][self.rank :: self.world_size], *order[whole:]]
        dealt = start.dealt
        for number in range(start.shard, len(shards)):
            if dealt == self.stream.num_samples:
                return
            row = start.row if number == start.shard else 0
            limit = self.stream.num_samples and self.stream.num_samples - dealt
            for table in self._read(int(shards[number]), row, limit):
                row += len(table)
                if number >= whole // self.world_size:
                    mine = np.arange((self.rank - dealt) % self.world_size, len(table), self.world_size)
                    dealt, table = dealt + len(table), table.take(mine)
                yield table, start._replace(shard=number, row=row, dealt=dealt)

    def _read(self, shard: int, skip: int, limit: int | None) -> Iterator[pa.Table]:
        """The rows of a shard behind the first `skip`, at most `limit`."""
        tables = self.stream.rows.read(shard, skip, limit)
        while True:
            if self.stopped.is_set():
                raise CancelledError
            try:
                if (table := next(tables, None)) is None:
                    return
            except HubError as error:
                raise HubError(f"subset `{self.stream.name}`: {error}") from error
            yield table

    def _clean(self, tables: list[pa.Table], start: Position, end: Position) -> Block:
        parts: list[Part] = []
        # one by one: files need not agree on their types
        tables = [convert(table, TRAIN_COLUMNS, parts) for table in tables]
        clean = Cleaner(self.stream.name, pa.concat_tables(tables).combine_chunks())
        rows, empty = train_rows(clean, blind=self.stream.blind)
        lost = np.flatnonzero(empty)
        random = np.random.default_rng([*self._key, start.pass_number, start.block])
        order = random.permutation(np.flatnonzero(~empty))
        return Block(
            rows=replace(rows, embedded=EmbeddedImages(parts) if parts else None).take(order),
            start=start,
            end=end._replace(
                block=start.block + 1, kept=start.kept + len(order), empty=start.empty + len(lost)
            ),
            strays=clean.strays,
            first_empty=clean.where(lost[0]) if len(lost) else None,
        )
