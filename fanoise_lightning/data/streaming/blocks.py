"""Streams of training rows, read in passes of shuffled shards and blocks.

A pass goes through the shards in an order drawn from (seed, subset, pass); within it, blocks of rows are
permuted by (seed, subset, pass, block). Nothing is held back between blocks, so no row is lost when a run is
stopped: the position in a stream is a handful of integers, the start of its block and the place in the block,
and a resumed run reads that block again.

The ranks share a pass as follows, here 5 shards on 2 ranks::

    order of the shards     3   0   4   1   |   2
    rank                    0   1   0   1   |   its rows in turn: 0, 1, 0, 1, ...

Each rank gets the same number of whole shards. All ranks read the remaining shards and share them row by row.
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

from fanoise_lightning._checks import check_at_least
from fanoise_lightning.data.rows.cleaning import Cleaner, empty_subset
from fanoise_lightning.data.rows.embedded import EmbeddedImages, KeyedBytes
from fanoise_lightning.data.rows.records import TRAIN_COLUMNS, TrainRows, train_rows
from fanoise_lightning.data.rows.shards import CHUNK, Rows
from fanoise_lightning.data.rows.tables import convert
from fanoise_lightning.data.sources.hub_errors import HubError

__all__ = ["Block", "Position", "StreamBlocks", "TrainStream"]


@dataclass(frozen=True)
class TrainStream:
    """The training pairs of one subset, as a stream of rows with MMEB's training columns.

    Args:
        name: of the subset.
        rows: in shards. The smaller these are, the better the rows are shuffled, and the less a resumed run
            reads again.
        num_rows: the declared number of rows, from which its share of an epoch follows.
        mask_same_target: pairs of a batch with the same target are not each other's negatives.
        num_samples: take only the first `num_samples` rows in the order of the shards, which then are not
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
            raise empty_subset(self.name, skipped=0)
        for name, value in (("num_rows", self.num_rows), ("num_samples", self.num_samples)):
            if value is not None:
                check_at_least(name, value, 1, f"subset `{self.name}`: ")

    def __len__(self) -> int:
        return self.num_rows if self.num_samples is None else min(self.num_rows, self.num_samples)


class Position(NamedTuple):
    """The position in a stream on one rank: integers alone, for a checkpoint.

    Args:
        pass_number: from 0.
        block: number of the block in the pass.
        shard: the shard at the start of the block, in the order of this rank's shards.
        row: rows of that shard before the block.
        dealt: rows of the pass before the block that the ranks shared row by row.
        kept: rows of the pass before the block that this rank got.
        empty: rows of the pass before the block that were skipped.
        place: the next row in the block.
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
    """Rows that were read and permuted together.

    Args:
        rows: without the empty ones.
        start: the position before them.
        end: the position after them.
        strays: see `Cleaner`.
        first_empty: file and row of the first empty row, if there is one.
    """

    rows: TrainRows
    start: Position
    end: Position
    strays: dict[str, int]
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
        stopped: when it is set, reading ends with a `CancelledError`, even in the middle of a block.
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
                    block = self._clean(tables, start, end)
                    yield block
                    start, tables = block.end, []
            if tables:
                block = self._clean(tables, start, end)
                yield block
                start = block.end
            if not start.kept:
                ranks = f" (rank {self.rank} of {self.world_size})" if self.world_size > 1 else ""
                raise empty_subset(self.stream.name, start.empty, ranks)
            start = Position(pass_number=start.pass_number + 1)

    def _block_size(self, start: Position) -> int:
        if start.pass_number:
            return self.shuffle_block
        # small blocks at first: otherwise a whole block of every subset is read before the first batch
        return min(self.shuffle_block, CHUNK * 2 ** min(start.block, 30))

    def _chunks(self, start: Position) -> Iterator[tuple[pa.Table, Position]]:
        """This rank's rows of a pass from `start`, and the position after them."""
        shards, num_whole = self._shards(start.pass_number)
        num_samples, dealt = self.stream.num_samples, start.dealt
        for number in range(start.shard, len(shards)):
            limit = None if num_samples is None else num_samples - dealt
            if limit == 0:
                return
            row = start.row if number == start.shard else 0
            for table in self._read(shards[number], row, limit):
                row += len(table)
                if number >= num_whole:
                    mine = np.arange((self.rank - dealt) % self.world_size, len(table), self.world_size)
                    dealt += len(table)
                    table = table.take(mine)
                yield table, start._replace(shard=number, row=row, dealt=dealt)

    def _shards(self, pass_number: int) -> tuple[list[int], int]:
        """The shards that this rank reads in a pass, in order, and how many of them it has for itself."""
        count = self.stream.rows.num_shards
        if self.stream.num_samples is not None:  # the first rows of the files, on any number of ranks
            return list(range(count)), 0
        order = np.random.default_rng([*self._key, pass_number]).permutation(count).tolist()
        num_whole = count // self.world_size
        shared = num_whole * self.world_size
        return order[:shared][self.rank :: self.world_size] + order[shared:], num_whole

    def _read(self, shard: int, skip: int, limit: int | None) -> Iterator[pa.Table]:
        """At most `limit` rows of a shard after the first `skip`."""
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
        parts: list[KeyedBytes] = []
        # one by one: files may disagree on their types
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
