"""Streams over numbered rows, in memory, and loaders of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from data_roots import collate, train_row

from fanoise_lightning.data.batches.skipped import SkipLimit
from fanoise_lightning.data.batches.training import PairCollate
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.columns import with_origin
from fanoise_lightning.data.rows.records import TrainRows
from fanoise_lightning.data.rows.shards import CHUNK
from fanoise_lightning.data.streaming.blocks import Block, Position, StreamBlocks
from fanoise_lightning.data.streaming.loader import StreamDataset, StreamLoader, StreamSampler
from fanoise_lightning.data.streaming.reader import StreamReader, TrainStream

LIMIT = SkipLimit("training rows", 10)
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


def make_streams() -> list[TrainStream]:
    """14 + 9 rows, one shard each of 8 and 6, and 5 and 4."""
    return [numbered([8, 6], 1000, "a"), numbered([5, 4], 2000, "b")]


def make_loader(
    streams: list[TrainStream], workers: int = 0, store: ImageStore | None = None, **options: Any
) -> StreamLoader:
    data = StreamDataset(streams, store or ImageStore(), LIMIT)
    options = {"batch_size": 4, "seed": 1, "shuffle_block": 5, **options}
    return StreamLoader(
        data,
        sampler=StreamSampler(data, streams, **options),
        batch_size=None,
        collate_fn=PairCollate(collate),
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def epoch(loader: StreamLoader, number: int = 0, stop: int | None = None) -> list[list[int]]:
    """The numbers of the batches of an epoch, or of its first `stop`."""
    loader.sampler.set_epoch(number)
    batches = []
    for batch in loader:
        batches.append(batch["query"]["number"].tolist())
        if len(batches) == stop:
            break
    return batches
