from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_roots import write_rows

from fanoise_lightning.data.rows.columns import Columns, where
from fanoise_lightning.data.rows.tables import find_subsets, read_table

COLUMNS: Columns = {"name": "text", "words": "texts", "extra": "optional texts"}
ROWS: list[dict[str, Any]] = [
    {"name": "one", "words": ["a", "b"], "extra": "x"},
    {"name": None, "words": [], "extra": None},
    {"name": "three", "words": [None], "extra": "z"},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_both_formats_give_the_same_columns(tmp_path: Path, suffix: str) -> None:
    table, _ = read_table(write_rows(tmp_path / f"rows{suffix}", ROWS), COLUMNS)
    assert table["name"].to_pylist() == ["one", "", "three"]
    assert table["words"].to_pylist() == [["a", "b"], [], [""]]
    assert [[text for text in row if text] for row in table["extra"].to_pylist()] == [["x"], [], ["z"]]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()]
)
def test_parquet_text_types_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {"name": pa.array(["x", None]).cast(kind), "words": pa.array([["a"], None])}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    table, _ = read_table(tmp_path / "rows.parquet", COLUMNS)
    assert table["name"].to_pylist() == ["x", ""]
    assert table["words"].to_pylist() == [["a"], []]
    assert table["extra"].to_pylist() == [[], []]


def test_shards_are_read_in_order_with_their_own_row_numbers(tmp_path: Path) -> None:
    write_rows(tmp_path / "s" / "1.parquet", ROWS[1:])
    write_rows(tmp_path / "s" / "0.parquet", ROWS[:1])
    table, _ = read_table(tmp_path / "s", COLUMNS)
    assert table["name"].to_pylist() == ["one", "", "three"]
    assert where(table, 2) == f"`{tmp_path / 's' / '1.parquet'}`, row 1"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_limit_takes_the_first_rows(tmp_path: Path, suffix: str) -> None:
    table, _ = read_table(write_rows(tmp_path / f"rows{suffix}", ROWS), COLUMNS, limit=2)
    assert table["name"].to_pylist() == ["one", ""]


def test_limit_counts_over_shards(tmp_path: Path) -> None:
    for shard in "012":
        write_rows(tmp_path / "s" / f"{shard}.parquet", ROWS[:2])
    assert read_table(tmp_path / "s", COLUMNS, limit=3)[0]["name"].to_pylist() == ["one", "", "one"]


def test_lines_are_counted_with_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"name": "x", "words": []}\n\n{"name": "y", "words": []}\n')
    assert where(read_table(path, COLUMNS)[0], 1) == f"`{path}`, line 4"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: "),
        ("[1]", "line 2: not an object"),
        ('{"words": []}', "line 2: column `name` is missing; the row has words"),
        ('{"name": 3, "words": []}', "line 2: column `name` must hold text, got 3"),
        ('{"name": "x", "words": "a"}', "line 2: column `words` must hold a list of texts, got 'a'"),
        ('{"name": "x", "words": [], "extra": [1]}', "line 2: column `extra`"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "x", "words": []}\n' + line + "\n")
    with pytest.raises(ValueError, match=message) as error:
        read_table(path, COLUMNS)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": ["x"]}, "column `words` is missing; the file has name"),
        ({"name": [1], "words": [["a"]]}, "column `name` must hold text, found int64"),
        ({"name": ["x"], "words": ["a"]}, "column `words` must hold lists of texts, found string"),
        ({"name": ["x"], "words": [[1]]}, "column `words` must hold lists of texts"),
    ],
)
def test_bad_parquet_columns_are_named(tmp_path: Path, columns: dict[str, list], message: str) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=message) as error:
        read_table(path, COLUMNS)
    assert str(path) in str(error.value)


def test_broken_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"rows\.parquet. cannot be read as parquet"):
        read_table(path, COLUMNS)


def test_subsets_are_files_and_folders_of_shards(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.jsonl", "c/0.parquet"):
        write_rows(tmp_path / name, ROWS[:1])
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    assert list(find_subsets(tmp_path)) == ["a", "b", "c"]


def test_a_subset_in_two_formats_is_an_error(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.jsonl"):
        write_rows(tmp_path / name, ROWS[:1])
    with pytest.raises(ValueError, match="`a` appears twice"):
        find_subsets(tmp_path)
