"""Rows out of streams: every one once a pass, in an order that is known, from any place on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from data_roots import train_row, write_rows
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from streams import FakeRows, a_pass, blocks, from_shards, numbered, numbers

from fanoise_lightning.data.hub_errors import HubError
from fanoise_lightning.data.records import TRAIN_COLUMNS, read_train
from fanoise_lightning.data.shards import CHUNK, FileRows
from fanoise_lightning.data.sides import Side
from fanoise_lightning.data.stream_blocks import Position
from fanoise_lightning.data.streaming import StreamReader, TrainStream

quick = settings(max_examples=25, deadline=None)
shard_sizes = st.lists(st.integers(0, 150), min_size=1, max_size=5)


def reader(stream: TrainStream, **options: Any) -> StreamReader:
    defaults = {"seed": 1, "rank": 0, "world_size": 1, "shuffle_block": 10, "prepare": lambda rows: None}
    return StreamReader(stream, 0, **{**defaults, **options})


def take(
    stream: TrainStream, count: int, at: Position | None = None, **options: Any
) -> list[tuple[int, Position]]:
    """Rows from `at`, and the position behind each."""
    source = reader(stream, **options)
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
        except ValueError as error:  # a shard can be empty, or all rows be dealt to the others
            assert f"`s` is empty for rank {rank} of {world}: no rows" in str(error)  # noqa: PT017
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
def test_going_on_at_any_place_equals_no_stop(sizes: list[int], options: dict[str, Any]) -> None:
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
    source = reader(stream)
    source.seek(Position())
    for _ in range(5):
        source.take()
    source.seek(source.position)
    source.take()
    count = len(opened)
    source.seek(Position(place=2))
    source.take()
    assert len(opened) > count


texts = st.sampled_from(
    ["", " ", "<|image_1|>", "<|image_1|>\n a", "b <|image_2|> c", "\u00a0", "d\x0b", "\u3000e"]
)
paths = st.sampled_from(["", "x.png", "dir/..y.png"])
negatives = st.lists(st.tuples(texts, paths), max_size=3)
rows = st.lists(st.tuples(texts, paths, texts, paths, negatives), min_size=1, max_size=12)


@pytest.mark.filterwarnings("ignore:subset")
@quick
@given(rows, st.booleans())
def test_rows_are_those_that_an_index_reads(tmp_path_factory: Any, rows: list[Any], blind: bool) -> None:
    names = ["qry", "qry_image_path", "pos_text", "pos_image_path"]
    table = [
        {
            **dict(zip(names, row)),
            "neg_text": [text for text, _ in row[4]],
            "neg_image_path": [path for _, path in row[4]],
        }
        for row in rows
    ]
    path = write_rows(tmp_path_factory.mktemp("rows") / "s.jsonl", table)
    stream = TrainStream("s", FileRows([path], TRAIN_COLUMNS), len(table), blind=blind)
    try:
        expected = read_train(path, "s", blind=blind)
    except ValueError as error:
        assert "is empty" in str(error)  # noqa: PT017
        with pytest.raises(ValueError, match="subset `s` is empty"):
            take(stream, 1)
        return
    source = reader(stream)
    source.seek(Position())
    read = sorted((source.take() for _ in range(len(expected))), key=lambda row: row.row)
    assert [(row.query, row.target, row.negatives) for row in read] == [
        (expected.queries[i], expected.targets[i], expected.negatives(i)) for i in range(len(expected))
    ]
    assert [row.row for row in read] == [int(expected.where(i).split()[-1]) for i in range(len(expected))]


def test_pictures_in_the_rows_come_along_as_bytes() -> None:
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [
            ("qry", pa.string()),
            ("pos_text", pa.string()),
            ("qry_image_path", picture),
            ("pos_image_path", pa.binary()),
        ]
    )
    table = [
        {
            "qry": "q0",
            "qry_image_path": {"bytes": b"zero", "path": "a.png"},
            "pos_text": "",
            "pos_image_path": b"one",
        },
        {
            "qry": "q1",
            "qry_image_path": {"bytes": None, "path": "b.png"},
            "pos_text": "t",
            "pos_image_path": None,
        },
    ]
    source = reader(TrainStream("s", from_shards([table], schema), 2))
    source.seek(Position())
    read = sorted((source.take() for _ in range(2)), key=lambda row: row.row)
    assert [row.query for row in read] == [Side("q0", b"zero"), Side("q1", "b.png")]
    assert [row.target for row in read] == [Side("", b"one"), Side("t", "")]


def test_undecoded_image_columns_are_pictures(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            **{name: datasets.Value("string") for name in ("qry", "pos_text", "pos_image_path")},
            "qry_image_path": datasets.Image(decode=False),
        }
    )
    table = [
        {
            "qry": "q0",
            "qry_image_path": {"bytes": b"zero", "path": None},
            "pos_text": "t",
            "pos_image_path": "",
        }
    ]
    datasets.Dataset.from_list(table, features=features).to_parquet(tmp_path / "s.parquet")
    source = reader(TrainStream("s", FileRows([tmp_path / "s.parquet"], TRAIN_COLUMNS), 1))
    source.seek(Position())
    assert source.take().query == Side("q0", b"zero")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qry": 7}, "`shard 0`: column `qry` must hold text, found int64"),
        (
            {"qry_image_path": "../x.png"},
            r"subset `s`, `shard 0`, row 1: the path '../x.png' in `qry_image_path` leaves",
        ),
        (
            {"neg_text": ["a", "b"], "neg_image_path": ["1.png"]},
            "row 1: `neg_text` has 2 entries, `neg_image_path` has 1",
        ),
    ],
)
def test_wrong_rows_name_subset_and_column(change: dict[str, Any], message: str) -> None:
    table = [
        {**train_row(0), **{k: v for k, v in change.items() if v != "../x.png" and k[:3] != "neg"}},
        {**train_row(1), **change},
    ]
    if "neg_text" in change:
        table[0] |= {"neg_text": [], "neg_image_path": []}
    source = reader(TrainStream("s", from_shards([table], None), 2))
    source.seek(Position())
    with pytest.raises(ValueError, match=message):
        source.take()


def test_rows_without_text_and_picture_are_skipped_and_reported() -> None:
    empty = [{**train_row(1), "qry": "<|image_1|> "}, {**train_row(3), "pos_text": ""}]
    table = [train_row(0), empty[0], train_row(2), empty[1]]
    source = reader(TrainStream("s", from_shards([table]), 4))
    source.seek(Position())
    with pytest.warns(UserWarning, match="texts in `qry` speak of a picture that the row does not have"):
        assert sorted(source.take().query.text for _ in range(2)) == ["q0", "q2"]
    line = source.report()
    assert "subset `s`: 2 rows are skipped, a side of them has neither text nor picture" in line
    assert "the first: subset `s`, `shard 0`, row 1" in line
    assert source.report() == ""


def test_a_stream_without_one_row_is_an_error() -> None:
    for table, cause in (
        ([], "no rows"),
        ([{**train_row(0), "qry": ""}], "on each of its 1 rows a side lacks text and picture"),
    ):
        source = reader(TrainStream("s", from_shards([table]), 4))
        source.seek(Position())
        with pytest.raises(ValueError, match=f"subset `s` is empty: {cause}"):
            source.take()


def test_a_pass_that_is_shorter_than_declared_is_counted() -> None:
    source = reader(numbered([6], num_rows=10))
    source.seek(Position())
    for _ in range(6):
        source.take()
    assert source.report() == ""
    for _ in range(13):
        source.take()
    assert source.report() == (
        "subset `s` ended after 6 of the 10 rows that were declared for this process, and began again "
        "(3 times)"
    )
    exact = reader(numbered([6]))
    exact.seek(Position())
    for _ in range(20):
        exact.take()
    assert exact.report() == ""


def test_an_error_in_the_middle_names_the_subset() -> None:
    def rows() -> Any:
        yield from (train_row(number) for number in range(100))
        raise HubError("connection lost")

    source = reader(TrainStream("s", FakeRows([rows]), 200))
    source.seek(Position())
    with pytest.raises(HubError, match="subset `s`: connection lost"):
        [source.take() for _ in range(200)]


def test_numbers_of_rows_must_be_positive() -> None:
    with pytest.raises(ValueError, match="subset `s`: `num_rows` must be at least 1, got -1"):
        numbered([3], num_rows=-1)
    with pytest.raises(ValueError, match="subset `s`: `num_samples` must be at least 1, got -1"):
        numbered([3], num_samples=-1)


def test_shards_need_not_agree_on_their_types() -> None:
    shards = [
        [{**train_row(0), "neg_text": None}],
        [{**train_row(1), "neg_text": ["n"], "neg_image_path": [""]}],
        [train_row(2)],
    ]
    source = reader(TrainStream("s", from_shards(shards, None), 3))
    source.seek(Position())
    read = sorted((source.take() for _ in range(3)), key=lambda row: row.file)
    assert [row.negatives for row in read] == [[], [Side("n", "")], []]
