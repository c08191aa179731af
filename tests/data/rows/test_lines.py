"""JSON-lines: by Arrow or by `json.loads`, the rows or the error are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_roots import train_row

from fanoise_lightning.data.rows import lines as module
from fanoise_lightning.data.rows.columns import Columns
from fanoise_lightning.data.rows.lines import parse_objects, read_lines
from fanoise_lightning.data.rows.records import TRAIN_COLUMNS
from fanoise_lightning.data.sources.any_source import open_source


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_a_file_in_another_encoding_says_what_to_do(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "rows.jsonl"
    line = json.dumps({**train_row(1), "qry": "é"}, ensure_ascii=False) + "\n"
    file.write_bytes((line * 3).encode(encoding))
    with pytest.raises(
        ValueError, match=r"rows\.jsonl`, line 1: it is not in UTF-8 .*: save the file as UTF-8"
    ):
        list(read_lines(file, TRAIN_COLUMNS, size=2))


FILES = {
    "a name that is not ASCII": '{"título": "a", "t": "b"}',
    "a name in escapes": r'{"t\u00edtulo": "a", "\u0074": "b"}',
    "the name as a value of another": '{"x": "t", "título": "a"}',
    "the name in a value of another": '{"x": {"t": 1}, "título": "a"}',
    "twice in another row": '{"título": "a"}\n{"t": "t", "título": "a"}',
    "a null at the start": 'null\n{"título": "a", "t": "b"}',
    "a null after it": '{"título": "a", "t": "b"}\nnull',
    "a text between": '{"título": "a", "t": "b"}\n"t"\n{"título": "c", "t": "d"}',
    "indented": '  {"título": "a", "t": "b"}\n\t{"título": "c", "t": "d"}',
    "two rows on a line": '{"título": "a", "t": "b"}{"t": "c"}\n{"t": \n"d"}',
    "a broken text that is not read": b'{"t": "b", "x": "\xe9"}',
    "a broken name that is not read": b'{"t": "b", "\xe9": "x"}',
    "nested lists": '{"t": "b", "x": ' + "[" * 200_000 + "]" * 200_000 + "}",
    "nested objects": '{"t": "b", "x": ' + '{"a": ' * 200_000 + "1" + "}" * 200_000 + "}",
    "many brackets": '{"t": "' + "[" * 2000 + '"}',
}


@pytest.mark.parametrize("kind", ["text", "optional text"])
@pytest.mark.parametrize("name", FILES)
def test_arrow_reads_what_json_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    file, content = tmp_path / "rows.jsonl", FILES[name]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    columns: Columns = {"título": "optional text", "t": kind}  # type: ignore[dict-item]

    def read() -> list[object]:
        try:
            return [table.to_pylist() for table in read_lines(file, columns, size=10)]
        except ValueError as error:
            return [str(error)]

    found = read()
    monkeypatch.setattr(module, "_parse_fast", lambda *arguments: None)
    assert found == read()


@pytest.mark.parametrize("name", FILES)
def test_no_file_ends_the_process_that_looks_for_its_columns(tmp_path: Path, name: str) -> None:
    file, content = tmp_path / "rows.jsonl", FILES[name]
    file.write_bytes((content if isinstance(content, bytes) else content.encode()) + b'\n{"z": "z"}\n')
    assert "z" in open_source(file).kinds


def test_lines_of_more_than_2_gib_are_left_to_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*, block_size: int, **options: object) -> object:
        return options_of(block_size=2**31, **options)

    options_of = module.arrow_json.ReadOptions
    monkeypatch.setattr(module.arrow_json, "ReadOptions", too_large)
    with pytest.raises(ValueError, match="too large"):
        parse_objects([b"{}\n"])
