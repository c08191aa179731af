"""JSON-lines in another encoding, and names of columns in any spelling that JSON allows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_roots import train_row

from fanoise_lightning.data.rows.columns import Kind
from fanoise_lightning.data.rows.lines import read_lines
from fanoise_lightning.data.rows.records import TRAIN_COLUMNS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_a_file_in_another_encoding_says_what_to_do(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "rows.jsonl"
    line = json.dumps({**train_row(1), "qry": "é"}, ensure_ascii=False) + "\n"
    file.write_bytes((line * 3).encode(encoding))
    with pytest.raises(
        ValueError, match=r"rows\.jsonl`, line 1: it is not in UTF-8 .*: save the file as UTF-8"
    ):
        list(read_lines(file, TRAIN_COLUMNS, size=2))


@pytest.mark.parametrize("kind", ["text", "optional text", "optional texts"])
@pytest.mark.parametrize(
    ("name", "written"),
    [("légende", '"légende"'), ("légende", r'"l\u00e9gende"'), ("说明", '"说明"'), ("a/b", r'"a\/b"')],
)
def test_a_column_is_read_however_its_name_is_written(
    tmp_path: Path, name: str, written: str, kind: Kind
) -> None:
    file = tmp_path / "rows.jsonl"
    value = '["a cat"]' if kind == "optional texts" else '"a cat"'
    file.write_text(f"{{{written}: {value}}}\n" * 3, encoding="utf-8")
    (table,) = read_lines(file, {name: kind}, size=10)
    assert table[name].to_pylist() == [json.loads(value)] * 3
