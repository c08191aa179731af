"""Rows from streams: each once a pass, in a known order, from any position on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from streams import a_pass, blocks, numbered, numbers, stream_reader

from fanoise_lightning.data.rows.shards import CHUNK
from fanoise_lightning.data.streaming.blocks import Position
from fanoise_lightning.data.streaming.reader import TrainStream

quick = settings(max_examples=25, deadline=None)
shard_sizes = st.lists(st.integers(0, 150), min_size=1, max_size=5)


def take(
    stream: TrainStream, count: int, at: Position | None = None, **options: Any
) -> list[tuple[int, Position]]:
    """Rows from `at`, and the position behind each."""
    source = stream_reader(stream, **options)
    source.seek(at or Position())
    return [(int(source.take().query.text[1:]), source.position) for _ in range(count)]


@quick
@given(shard_sizes, st.integers(1, 3), st.integers(1, 200), st.integers(0, 2))
def test_the_ranks_share_a_pass_without_loss_or_repeat(
    sizes: list[int], world: int, block: int, number: int
) -> None:
    assume(sum(sizes) >= world)
    stream, seen = numbered(sizes), []
    for rank in range(world):
        source = blocks(stream, rank=rank, world_size=world, shuffle_block=block)
        try:
            for part in a_pass(source, number):
                seen += numbers(part.rows)
        except ValueError as error:  # a shard can be empty, or the other ranks get all rows
            assert f"`s` is empty: no rows (rank {rank} of {world})" in str(error)  # noqa: PT017
    assert sorted(seen) == list(range(sum(sizes)))


@quick
@given(shard_sizes, st.integers(1, 3), st.integers(1, 300), st.integers(0, 2))
def test_num_samples_are_the_first_in_file_order_on_any_number_of_ranks(
    sizes: list[int], world: int, count: int, number: int
) -> None:
    assume(min(count, sum(sizes)) >= world)
    stream, seen = numbered(sizes, num_samples=count), []
    for rank in range(world):
        parts = list(a_pass(blocks(stream, rank=rank, world_size=world), number))
        mine = [row for part in parts for row in numbers(part.rows)]
        assert abs(len(mine) - len(stream) / world) < 1
        seen += mine
    assert sorted(seen) == list(range(min(count, sum(sizes))))
    assert len(stream) == min(count, sum(sizes))


def test_whole_shards_are_dealt_evenly_and_the_rest_by_rows() -> None:
    stream = numbered([100] * 5)
    ranks = [
        [number for part in a_pass(blocks(stream, rank=rank, world_size=2)) for number in numbers(part.rows)]
        for rank in (0, 1)
    ]
    assert list(map(len, ranks)) == [250, 250]
    shards = [{number // 100 for number in rank} for rank in ranks]
    assert len(shards[0] & shards[1]) == 1  # the fifth


def test_the_order_is_a_function_of_seed_subset_and_pass() -> None:
    sizes = [40, 30, 50]

    def order(number: int = 0, **options: Any) -> list[int]:
        name = options.pop("name", "s")
        return [
            row
            for part in a_pass(blocks(numbered(sizes, name=name), **options), number)
            for row in numbers(part.rows)
        ]

    first = order()
    assert first == order()
    others = [order(number=1), order(seed=2), order(name="t"), order(shuffle_block=20)]
    assert all(other != first and sorted(other) == sorted(first) for other in others)


def test_shards_and_blocks_are_shuffled_anew_in_each_pass() -> None:
    def parts(number: int, sizes: list[int], block: int) -> list[list[int]]:
        return [numbers(part.rows) for part in a_pass(blocks(numbered(sizes), shuffle_block=block), number)]

    shards = {tuple(part[0] // CHUNK for part in parts(number, [CHUNK] * 3, 1)) for number in range(1, 9)}
    assert len(shards) > 1
    first, second = (parts(number, [CHUNK * 2], CHUNK) for number in (1, 2))
    assert first[0] != second[0]
    assert first[0] != [row - CHUNK for row in first[1]]  # another order in each block


def test_nothing_is_read_behind_num_samples() -> None:
    stream = numbered([100, 100], num_samples=70)
    part = list(a_pass(blocks(stream)))
    assert set(stream.rows.opened) == {0}
    assert sorted(row for block in part for row in numbers(block.rows)) == list(range(70))


def test_a_block_is_a_permutation_of_neighbours() -> None:
    parts = [numbers(part.rows) for part in a_pass(blocks(numbered([1000]), shuffle_block=200), 1)]
    assert [sorted(part) for part in parts] == [
        list(range(256 * i, min(256 * i + 256, 1000))) for i in range(4)
    ]
    assert all(part != sorted(part) for part in parts)


def test_the_first_pass_begins_with_small_blocks() -> None:
    lengths = [len(part.rows) for part in a_pass(blocks(numbered([2000]), shuffle_block=1000))]
    assert lengths[:4] == [CHUNK, 2 * CHUNK, 4 * CHUNK, 8 * CHUNK]
    assert max(lengths) <= 1000 + CHUNK


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ([25, 20, 5], {}),
        ([25, 20, 5], {"rank": 1, "world_size": 2}),
        ([50], {"rank": 2, "world_size": 3}),
        ([25, 20, 5], {"rank": 1, "world_size": 2, "num_samples": 33}),
        ([200, 90], {"shuffle_block": 70}),
    ],
)
def test_resuming_at_any_position_equals_no_stop(sizes: list[int], options: dict[str, Any]) -> None:
    options = dict(options)
    stream = numbered(sizes, num_samples=options.pop("num_samples", None))
    count = 2 * sum(sizes)  # across the ends of passes
    unbroken = take(stream, count, **options)
    for stop in range(0, count - 5, 3 if count <= 100 else 29):
        after = Position(*map(int, unbroken[stop][1]))
        assert take(stream, 5, at=after, **options) == unbroken[stop + 1 : stop + 6]


def test_a_reader_that_is_where_it_should_be_reads_nothing_again() -> None:
    stream = numbered([30])
    opened = stream.rows.opened
    source = stream_reader(stream)
    source.seek(Position())
    for _ in range(5):
        source.take()
    source.seek(source.position)
    source.take()
    count = len(opened)
    source.seek(Position(place=2))
    source.take()
    assert len(opened) > count
