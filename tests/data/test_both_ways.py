"""By index and as a stream, a file gives the same rows, or the same error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_roots import collate, make_root, train_row, write_rows
from streams import stream_reader

from fanoise_lightning.data import MMEBDataModule
from fanoise_lightning.data.rows.embedded import EmbeddedImages
from fanoise_lightning.data.rows.records import TRAIN_COLUMNS, read_train
from fanoise_lightning.data.rows.references import Reference
from fanoise_lightning.data.rows.shards import FileRows
from fanoise_lightning.data.streaming.blocks import Position, TrainStream

Read = Callable[[list[Path], int | None], list[Any]]


def by_index(files: list[Path], limit: int | None = None) -> list[Any]:
    rows = read_train(files, "s", limit=limit)
    return sorted(
        (rows.where(at), *(with_bytes(each, rows.embedded) for each in (rows.queries[at], rows.targets[at])),
         [with_bytes(each, rows.embedded) for each in rows.negatives(at)])
        for at in range(len(rows))
    )  # fmt: skip


def with_bytes(reference: Reference, images: EmbeddedImages | None) -> Reference:
    data = images.get(reference.image) if images is not None else None  # type: ignore[arg-type]
    return reference if data is None else Reference(reference.text, data)


def as_stream(files: list[Path], limit: int | None = None) -> list[Any]:
    source = FileRows(files, TRAIN_COLUMNS)
    stream = TrainStream("s", source, source.num_rows, num_samples=limit)
    reader = stream_reader(stream, shuffle_block=100)
    reader.seek(Position())
    found = []
    while True:
        row = reader.take()
        if reader.position.pass_number:  # the second pass
            reader.close()
            return sorted(found)
        kind = "line" if row.file.endswith(".jsonl") else "row"
        found.append((f"subset `s`, `{row.file}`, {kind} {row.row}", row.query, row.target, row.negatives))


def outcome(read: Read, files: list[Path], limit: int | None = None) -> Any:
    try:
        return read(files, limit)
    except ValueError as error:
        return str(error)


def agree(files: Path | list[Path], limit: int | None = None) -> Any:
    """What both ways give: the rows, or the message of the error."""
    files = [files] if isinstance(files, Path) else files
    indexed = outcome(by_index, files, limit)
    assert outcome(as_stream, files, limit) == indexed
    return indexed


def rows(count: int, **columns: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [
        {**train_row(number), **{name: make(number) for name, make in columns.items()}}
        for number in range(count)
    ]


def test_spellings_of_a_path_are_one_image(tmp_path: Path) -> None:
    spellings = ["a/é.png", "./a/é.png", "a\\\\é.png", "a//e\u0301.png"]
    table = rows(4, qry_image_path=spellings.__getitem__, neg_image_path=lambda row: [spellings[row]])
    found = agree(write_rows(tmp_path / "s.jsonl", table))
    images = {each.image for _, query, _, negatives in found for each in (query, *negatives)}
    assert images == {"a/é.png"}


NEGATIVES: dict[str, Callable[[int], Any]] = {
    "texts, then lists": lambda row: f"n{row}" if row < 150 else [f"n{row}", "m"],
    "lists, then texts": lambda row: [f"n{row}"] if row < 150 else f"n{row}",
    "both by turns": lambda row: [f"n{row}"] if row % 2 else f"n{row}",
    "nothing, then texts": lambda row: None if row < 150 else f"n{row}",
    "nothing, then lists": lambda row: None if row < 150 else [f"n{row}", None],
    "what looks like a date": lambda row: "2024-05-01T00:00:00" if row % 3 else "2024-05-02",
    "what looks like JSON": lambda row: f'["n{row}"]',
    "empty lists, then texts": lambda row: [] if row < 150 else f"n{row}",
}


def negatives_of(value: Any) -> list[str]:
    return [text for text in ([value] if isinstance(value, str) else value or []) if text]


@pytest.mark.filterwarnings("ignore:subset")
@pytest.mark.parametrize("kind", NEGATIVES)
def test_negatives_of_json_lines_are_not_retyped(tmp_path: Path, kind: str) -> None:
    table = rows(200, neg_text=NEGATIVES[kind])
    found = agree(write_rows(tmp_path / "s.jsonl", table))
    expected = {row["qry"]: negatives_of(row["neg_text"]) for row in table}
    assert {row[1].text: [negative.text for negative in row[3]] for row in found} == expected


@pytest.mark.parametrize("column", ["qry", "pos_text"])
def test_texts_of_json_lines_are_not_retyped(tmp_path: Path, column: str) -> None:
    values = ["2024-05-01", "2024-05-01T10:00:00Z", "12", "true", "null", '"quoted"', "[]", "1e5"]
    table = rows(80, **{column: lambda row: values[row % len(values)]})
    found = agree(write_rows(tmp_path / "s.jsonl", table))
    at = 1 if column == "qry" else 2
    assert sorted(row[at].text for row in found) == sorted(row[column] for row in table)


def test_types_may_change_behind_ten_megabytes(tmp_path: Path) -> None:
    long = "x" * 20_000
    table = rows(600, neg_text=lambda row: f"n{row} {long}" if row < 550 else [f"n{row}", "m"])
    table[-1]["new"] = {"a": [1]}
    found = agree(write_rows(tmp_path / "s.jsonl", table))
    assert sum(len(row[3]) for row in found) == 550 + 2 * 50


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**train_row(9), "pos_text": ["t"]}, "column `pos_text` must hold text, got ['t']"),
        ({**train_row(9), "qry": 9}, "column `qry` must hold text, got 9"),
        ({**train_row(9), "neg_text": [["n"]]}, "column `neg_text` must hold a list of texts, got [['n']]"),
        ({**train_row(9), "qry": "\ud83d"}, "column `qry` holds half of a surrogate pair"),
        ({**train_row(9), "neg_text": ["a", "\ude00"]}, "column `neg_text` holds half of a surrogate pair"),
        ({"\ud83d": 1}, "column `qry` is missing; the row has \\ud83d"),
        ("[" * 100_000, "nested too deeply"),
        ('{"qry": ' + "[" * 100_000, "nested too deeply"),
        ('{"qry": "cut', "Invalid control character"),
        ("[1]", "not an object"),
        ({**train_row(9), "neg_text": ["a", "b"], "neg_image_path": ["1.png"]}, "2 entries"),
        ({**train_row(9), "qry_image_path": "../x.png"}, "leaves the image root"),
    ],
)
@pytest.mark.parametrize("at", [0, 150])
def test_a_wrong_line_is_the_same_error(tmp_path: Path, at: int, line: Any, message: str) -> None:
    lines = [json.dumps(row) for row in rows(200)]
    lines[at] = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "s.jsonl").write_text("\n" + "\n".join(lines))
    found = agree(tmp_path / "s.jsonl")
    assert f"`{tmp_path / 's.jsonl'}`, line {at + 2}: " in found
    assert message in found


def test_a_wrong_line_behind_num_samples_is_not_read(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in rows(100)] + ["{"]
    (tmp_path / "s.jsonl").write_text("\n".join(lines))
    assert len(agree(tmp_path / "s.jsonl", limit=100)) == 100


@pytest.mark.filterwarnings("ignore:subset")
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("table", "cause"), [([], "no rows"), (rows(3, qry=lambda row: ""), "in each of its 3 rows, a query")]
)
def test_a_file_without_a_usable_row_is_the_same_error(
    tmp_path: Path, suffix: str, table: list[Any], cause: str
) -> None:
    file = tmp_path / f"s{suffix}"
    if suffix == ".jsonl":
        write_rows(file, table)
    else:
        pq.write_table(
            pa.Table.from_pylist(rows(1)).slice(0, 0) if not table else pa.Table.from_pylist(table), file
        )
    assert agree(file).startswith(f"subset `s` is empty: {cause}")


COLUMNS: dict[str, Callable[[], Any]] = {
    "strings": lambda: pa.array([f"n{row}" for row in range(200)]),
    "lists": lambda: pa.array([[f"n{row}", ""] for row in range(200)]),
    "large lists": lambda: pa.array([[f"n{row}"] for row in range(200)], pa.large_list(pa.large_string())),
    "nothing": lambda: pa.nulls(200),
    "a dictionary": lambda: pa.array(["a", "b"] * 100).dictionary_encode(),
    "numbers": lambda: pa.array(range(200)),
    "lists of numbers": lambda: pa.array([[row] for row in range(200)]),
    "bytes": lambda: pa.array([b"n"] * 200),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_parquet_is_read_alike_in_every_type(tmp_path: Path, kind: str) -> None:
    table = pa.Table.from_pylist(rows(200)).append_column("neg_text", COLUMNS[kind]())
    pq.write_table(table, tmp_path / "s.parquet", row_group_size=90)
    found = agree(tmp_path / "s.parquet")
    if "numbers" in kind or kind == "bytes":
        assert f"`{tmp_path / 's.parquet'}`: column `neg_text` must hold texts or lists of texts" in found
    else:
        assert len(found) == 200
        assert f"`{tmp_path / 's.parquet'}`, row 199" in {
            row[0].removeprefix("subset `s`, ") for row in found
        }


def test_shards_may_differ_in_their_types(tmp_path: Path) -> None:
    files = []
    for number, kind in enumerate(["strings", "nothing", "lists"]):
        table = pa.Table.from_pylist(rows(200)).append_column("neg_text", COLUMNS[kind]())
        pq.write_table(table, tmp_path / f"{number}.parquet")
        files.append(tmp_path / f"{number}.parquet")
    assert len(agree(files)) == 600


def test_images_in_the_rows_are_read_alike(tmp_path: Path) -> None:
    """One of no bytes is an image that is broken, and not none."""
    table = rows(3, qry_image_path=lambda row: {"bytes": [b"one", b"", None][row], "path": f"{row}.png"})
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "s.parquet")
    assert [row[1].image for row in agree(tmp_path / "s.parquet")] == [b"one", b"", "2.png"]


def test_a_text_that_is_no_unicode_is_the_same_error(tmp_path: Path) -> None:
    texts = pa.array([b"fine"] * 150 + [b"\xff"] + [b"fine"] * 49)
    broken = pa.StringArray.from_buffers(len(texts), *texts.buffers()[1:])
    table = pa.Table.from_pylist(rows(200)).set_column(0, "qry", broken)
    pq.write_table(table, tmp_path / "s.parquet", row_group_size=80)
    assert f"`{tmp_path / 's.parquet'}`, row 150: column `qry` holds text that is not UTF-8" in agree(
        tmp_path / "s.parquet"
    )


@pytest.mark.parametrize("keep", [-20, 100, 3, 0])
def test_a_parquet_file_that_is_cut_off_is_the_same_error(tmp_path: Path, keep: int) -> None:
    file = write_rows(tmp_path / "s.parquet", rows(200))
    file.write_bytes(file.read_bytes()[:keep])
    assert agree(file).startswith(f"`{file}` cannot be read as parquet: ")


def test_a_parquet_file_that_is_damaged_inside_is_the_same_error(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "s.parquet", rows(200))
    data = bytearray(file.read_bytes())
    data[4:400] = b"\xff" * 396
    file.write_bytes(data)
    for read in (by_index, as_stream):
        with pytest.raises(ValueError, match=f"`{file}` cannot be read as parquet: "):
            read([file], None)


def test_a_column_that_is_missing_is_the_same_error(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows(3)).drop_columns("pos_text")
    pq.write_table(table, tmp_path / "s.parquet")
    assert "column `pos_text` is missing; the file has qry, qry_image_path" in agree(tmp_path / "s.parquet")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_image_of_no_bytes_is_counted(tmp_path: Path, suffix: str, streaming: bool) -> None:
    root = make_root(tmp_path / "root", suffix)
    for file in (root / "train").iterdir():
        file.unlink()
    table = rows(12, qry_image_path=lambda row: b"" if row == 5 else None)
    pq.write_table(pa.Table.from_pylist(table), root / "train" / "a.parquet")
    options: dict[str, Any] = {"batch_size": 12, "num_workers": 0, "collate": collate}
    data = MMEBDataModule(root, streaming=streaming, max_skipped=0.5, **options)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert len(batch["skipped"]) == 1
    assert "row 5: image" in batch["skipped"][0]
    assert 5 not in batch["query"]["number"].tolist()
