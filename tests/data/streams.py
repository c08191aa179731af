"""Streams over numbered rows, in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from data_roots import train_row

from fanoise_lightning.data.rows.columns import with_origin
from fanoise_lightning.data.rows.records import TrainRows
from fanoise_lightning.data.rows.shards import CHUNK
from fanoise_lightning.data.streaming.blocks import Block, Position, StreamBlocks
from fanoise_lightning.data.streaming.reader import StreamReader, TrainStream

SCHEMA = pa.schema([(name, pa.string()) for name in train_row(0)])


class FakeRows:
    """Shards out of functions that give their rows one by one; file and row are "shard 0", 0 and so on."""

    def __init__(self, shards: Sequence[Callable[[], Iterable[Any]]], schema: Any = SCHEMA) -> None:
        self.shards, self.schema = shards, schema
        self.opened: list[int] = []

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    def read(self, shard: int, skip: int = 0, limit: int | None = None) -> Iterator[pa.Table]:
        self.opened.append(shard)
        end = None if limit is None else skip + limit
        rows = itertools.islice(self.shards[shard](), skip, end)
        while part := list(itertools.islice(rows, CHUNK)):
            table = pa.Table.from_pylist(part, schema=self.schema)
            yield with_origin(table, f"shard {shard}", range(skip, skip := skip + len(part)))


def from_shards(shards: Sequence[Sequence[dict[str, Any]]], schema: Any = SCHEMA) -> FakeRows:
    return FakeRows([lambda shard=shard: shard for shard in shards], schema)


def numbered(sizes: Sequence[int], base: int = 0, name: str = "s", **options: Any) -> TrainStream:
    """Rows base, base + 1, ... in shards of these sizes; `num_rows` is right unless it is given."""
    numbers = iter(range(base, base + sum(sizes)))
    shards = [[train_row(next(numbers)) for _ in range(size)] for size in sizes]
    return TrainStream(name, from_shards(shards), **{"num_rows": sum(sizes), **options})


def blocks(stream: TrainStream, **options: Any) -> StreamBlocks:
    return StreamBlocks(stream, **{"seed": 1, "rank": 0, "world_size": 1, "shuffle_block": 1000, **options})


def stream_reader(stream: TrainStream, **options: Any) -> StreamReader:
    """A reader of the stream, which prepares nothing."""
    defaults = {
        "seed": 1,
        "rank": 0,
        "world_size": 1,
        "shuffle_block": 10,
        "prepare": lambda paths, name: None,
    }
    return StreamReader(stream, 0, **{**defaults, **options})


def numbers(rows: TrainRows) -> list[int]:
    return [int(text[1:]) for text in rows.queries.texts.to_pylist()]


def a_pass(source: StreamBlocks, number: int = 0) -> Iterator[Block]:
    """The blocks of one pass."""
    for block in source.read(Position(pass_number=number)):
        if block.start.pass_number > number:
            return
        yield block
