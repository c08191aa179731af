"""Streams over numbered rows, as `datasets` makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import pyarrow as pa
from data_roots import train_row

from fanoise_lightning.data.records import TrainRows
from fanoise_lightning.data.stream_blocks import Block, Position, StreamBlocks
from fanoise_lightning.data.streaming import TrainStream

FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("qry", "qry_image_path", "pos_text", "pos_image_path")}
)


def from_shards(
    shards: Sequence[Sequence[dict[str, Any]]], features: Any = FEATURES
) -> datasets.IterableDataset:
    """A stream of these shards, Arrow tables as those of parquet files are."""
    schema = None if features is None else features.arrow_schema

    def tables(shard: list[int]) -> Iterator[tuple[int, pa.Table]]:
        for number in shard:
            yield number, pa.Table.from_pylist(list(shards[number]), schema=schema)

    examples = datasets.iterable_dataset.ArrowExamplesIterable(tables, {"shard": list(range(len(shards)))})
    return datasets.IterableDataset(examples, info=datasets.DatasetInfo(features=features))


def numbered(sizes: Sequence[int], base: int = 0, name: str = "s", **options: Any) -> TrainStream:
    """Rows base, base + 1, ... in shards of these sizes; `num_rows` is right unless it is given."""
    numbers = iter(range(base, base + sum(sizes)))
    shards = [[train_row(next(numbers)) for _ in range(size)] for size in sizes]
    return TrainStream(name, from_shards(shards), **{"num_rows": sum(sizes), **options})


def blocks(stream: TrainStream, **options: Any) -> StreamBlocks:
    return StreamBlocks(stream, **{"seed": 1, "rank": 0, "world_size": 1, "shuffle_block": 1000, **options})


def numbers(rows: TrainRows) -> list[int]:
    return [int(text[1:]) for text in rows.queries.texts.to_pylist()]


def a_pass(source: StreamBlocks, number: int = 0) -> Iterator[Block]:
    """The blocks of one pass."""
    for block in source.read(Position(number=number)):
        if block.start.number > number:
            return
        yield block
