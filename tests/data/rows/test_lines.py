"""JSON-lines in another encoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_roots import train_row

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
