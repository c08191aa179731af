"""Files of queries: every format says the same, and a wrong row is named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fanoise_lightning.search.queries import Query, read_queries

ROWS = [{"text": "a mug", "image": "", "right": "7"}, {"text": "in blue", "image": "mug.png", "right": ""}]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"queries{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        lines = [list(ROWS[0]), *(row.values() for row in ROWS)]
        path.write_text("".join(("\t" if suffix == ".tsv" else ",").join(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_says_the_same(tmp_path: Path, suffix: str) -> None:
    expected = [Query("a mug", None, ("7",)), Query("in blue", tmp_path / "mug.png")]
    assert read_queries(write(tmp_path, suffix)) == expected


def test_a_text_file_has_a_query_per_line(tmp_path: Path) -> None:
    path = tmp_path / "queries.txt"
    path.write_text("a mug\n\n in blue \n")
    assert read_queries(path) == [Query("a mug"), Query("in blue")]


def test_right_ids_may_be_numbers_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"text": "a", "right": 0}\n{"text": "b", "right": ["x", 3, "x"]}\n')
    assert [query.right for query in read_queries(path)] == [("0",), ("x", "3")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", '{"text": "a"}\n{"text": " "}\n', "line 2: the query is empty"),
        ("q.jsonl", '{"text": 3}\n', "line 1: `text` and `image` must be strings"),
        ("q.jsonl", '{"txt": "a"}\n', "line 1: unknown column `txt`"),
        ("q.jsonl", "[1]\n", "line 1: expected an object"),
        ("q.jsonl", "{\n", "cannot be read"),
        ("q.txt", "\n", "there is none in it"),
        ("q.csv", "", "there is none in it"),
        ("q.xlsx", "", "suffix"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_queries(path)


def test_semicolons_and_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("text;right\na red, mug;7\n", encoding="utf-8")
    assert read_queries(tmp_path / "q.csv") == [Query("a red, mug", None, ("7",))]
    (tmp_path / "l.csv").write_bytes("text,right\ncaf\u00e9,7\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"l\.csv.*save it as UTF-8"):
        read_queries(tmp_path / "l.csv")


def test_a_right_answer_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"text": "a", "right": ["x", "y", "x"]}\n')
    assert read_queries(path)[0].right == ("x", "y")
