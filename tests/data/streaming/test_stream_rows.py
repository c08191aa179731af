"""Rows from streams: what is in them, and the messages about wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from data_roots import train_row, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import FakeRows, from_shards, numbered, stream_reader

from fanoise_lightning.data.rows.records import TRAIN_COLUMNS, read_train
from fanoise_lightning.data.rows.references import Reference
from fanoise_lightning.data.rows.shards import FileRows
from fanoise_lightning.data.sources.hub_errors import HubError
from fanoise_lightning.data.streaming.blocks import Position
from fanoise_lightning.data.streaming.reader import TrainStream

texts = st.sampled_from(
    ["", " ", "<|image_1|>", "<|image_1|>\n a", "b <|image_2|> c", "\u00a0", "d\x0b", "\u3000e"]
)
paths = st.sampled_from(["", "x.png", "dir/..y.png"])
negatives = st.lists(st.tuples(texts, paths), max_size=3)
rows = st.lists(st.tuples(texts, paths, texts, paths, negatives), min_size=1, max_size=12)


@pytest.mark.filterwarnings("ignore:subset")
@settings(max_examples=25, deadline=None)
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
    source = stream_reader(stream)
    source.seek(Position())
    try:
        expected = read_train(path, "s", blind=blind)
    except ValueError as error:
        assert "is empty" in str(error)  # noqa: PT017
        with pytest.raises(ValueError, match="subset `s` is empty"):
            source.take()
        return
    read = sorted((source.take() for _ in range(len(expected))), key=lambda row: row.row)
    assert [(row.query, row.target, row.negatives) for row in read] == [
        (expected.queries[i], expected.targets[i], expected.negatives(i)) for i in range(len(expected))
    ]
    assert [row.row for row in read] == [int(expected.where(i).split()[-1]) for i in range(len(expected))]


def test_images_in_the_rows_come_along_as_bytes() -> None:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [
            ("qry", pa.string()),
            ("pos_text", pa.string()),
            ("qry_image_path", image),
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
    source = stream_reader(TrainStream("s", from_shards([table], schema), 2))
    source.seek(Position())
    read = sorted((source.take() for _ in range(2)), key=lambda row: row.row)
    assert [row.query for row in read] == [Reference("q0", b"zero"), Reference("q1", "b.png")]
    assert [row.target for row in read] == [Reference("", b"one"), Reference("t", "")]


def test_undecoded_image_columns_are_images(tmp_path: Path) -> None:
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
    source = stream_reader(TrainStream("s", FileRows([tmp_path / "s.parquet"], TRAIN_COLUMNS), 1))
    source.seek(Position())
    assert source.take().query == Reference("q0", b"zero")


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
    source = stream_reader(TrainStream("s", from_shards([table], None), 2))
    source.seek(Position())
    with pytest.raises(ValueError, match=message):
        source.take()


def test_rows_without_text_and_image_are_skipped_and_reported() -> None:
    empty = [{**train_row(1), "qry": "<|image_1|> "}, {**train_row(3), "pos_text": ""}]
    table = [train_row(0), empty[0], train_row(2), empty[1]]
    source = stream_reader(TrainStream("s", from_shards([table]), 4))
    source.seek(Position())
    with pytest.warns(
        UserWarning, match="1 texts in `qry` mention an image that the row does not.*further ones"
    ):
        assert sorted(source.take().query.text for _ in range(2)) == ["q0", "q2"]
    line = source.report()
    assert "subset `s`: 2 rows are skipped because a query or target has neither text nor image" in line
    assert "the first: subset `s`, `shard 0`, row 1" in line
    assert source.report() == ""


def test_a_stream_without_one_row_is_an_error() -> None:
    for table, cause in (
        ([], "no rows"),
        ([{**train_row(0), "qry": ""}], "in each of its 1 rows, a query or target has neither"),
    ):
        source = stream_reader(TrainStream("s", from_shards([table]), 4))
        source.seek(Position())
        with pytest.raises(ValueError, match=f"subset `s` is empty: {cause}"):
            source.take()


def test_a_pass_that_is_shorter_than_declared_is_counted() -> None:
    source = stream_reader(numbered([6], num_rows=10))
    source.seek(Position())
    for _ in range(6):
        source.take()
    assert source.report() == ""
    for _ in range(13):
        source.take()
    assert source.report() == (
        "subset `s` ended after 6 of the 10 rows declared for this process, and started again (3 times)"
    )
    exact = stream_reader(numbered([6]))
    exact.seek(Position())
    for _ in range(20):
        exact.take()
    assert exact.report() == ""


def test_an_error_in_the_middle_names_the_subset() -> None:
    def rows() -> Any:
        yield from (train_row(number) for number in range(100))
        raise HubError("connection lost")

    source = stream_reader(TrainStream("s", FakeRows([rows]), 200))
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
    source = stream_reader(TrainStream("s", from_shards(shards, None), 3))
    source.seek(Position())
    read = sorted((source.take() for _ in range(3)), key=lambda row: row.file)
    assert [row.negatives for row in read] == [[], [Reference("n", "")], []]
