"""Names of files of rows: which are read, and that others are reported."""

from __future__ import annotations

import gzip
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from data_roots import collate, make_root, train_row, write_rows

from fanoise_lightning.data import MMEBDataModule, PairDataModule
from fanoise_lightning.data.rows.columns import Columns, where
from fanoise_lightning.data.rows.tables import find_subsets, read_table, subset_name

COLUMNS: Columns = {"qry": "text", "pos_text": "text"}


def pack(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


@pytest.mark.parametrize("name", ["a.JSONL", "a.jsonl.gz", "a.Jsonl.GZ", "a.PARQUET"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_subset_is_read_whatever_the_case_of_its_ending(tmp_path: Path, name: str, streaming: bool) -> None:
    root = make_root(tmp_path / "root", ".parquet" if "PARQUET" in name else ".jsonl")
    (file,) = (root / "train").glob("a.*")
    if name.lower().endswith(".gz"):
        file = pack(file)
    file.rename(root / "train" / name)
    data = MMEBDataModule(root, batch_size=6, num_workers=0, collate=collate, streaming=streaming)
    data.setup()
    numbers = [number for batch in data.train_dataloader() for number in batch["query"]["number"].tolist()]
    assert sorted(numbers) == [*range(1000, 1024), *range(2000, 2012)]


def test_a_packed_file_is_read_like_its_lines(tmp_path: Path) -> None:
    rows = [train_row(number) for number in range(7)]
    plain = write_rows(tmp_path / "mine.jsonl", rows)
    expected = read_table(plain, COLUMNS, 5)[0].drop_columns("file")
    packed = pack(plain)
    table = read_table(packed, COLUMNS, 5)[0]
    assert table.drop_columns("file") == expected
    assert where(table, 2) == f"`{packed}`, line 3"
    data = PairDataModule(packed, num_workers=0, batch_size=2, collate=collate, val_fraction=0.3)
    data.setup()
    assert (data.train_set.subsets[0].name, subset_name(packed)) == ("mine", "mine")


def test_a_packed_file_that_is_broken_is_named(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "mine.jsonl", [{"qry": os.urandom(50).hex(), "pos_text": ""} for _ in range(99)]
    )
    packed = pack(path)
    whole = packed.read_bytes()
    for data in (whole[: len(whole) // 2], b"no gzip", whole[:200] + bytes(50) + whole[250:]):
        packed.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"mine\.jsonl\.gz` cannot be unpacked, or is truncated|line \d+: "
        ):
            read_table(packed, COLUMNS)


def test_what_is_ignored_is_named(tmp_path: Path) -> None:
    for name in ("a.parquet", "c.JSONL"):
        write_rows(tmp_path / name, [train_row(0)]) if "p" in name else (tmp_path / name).write_text(
            json.dumps(train_row(0))
        )
    (tmp_path / "b.csv").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "d.jsonl").mkdir()
    for name in ("._a.parquet", ".DS_Store"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r": b\.csv, d\.jsonl, empty ignored: a subset is a \.parquet"):
        assert set(find_subsets(tmp_path)) == {"a", "c"}
    for name in ("b.csv", "empty", "d.jsonl"):
        path: Any = tmp_path / name
        path.rmdir() if path.is_dir() else path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(find_subsets(tmp_path)) == {"a", "c"}


def test_two_forms_of_a_subset_are_an_error(tmp_path: Path) -> None:
    pack(write_rows(tmp_path / "a.jsonl", [train_row(0)]))
    write_rows(tmp_path / "a.parquet", [train_row(0)])
    with pytest.raises(ValueError, match=r"subset `a` appears twice"):
        find_subsets(tmp_path)


def test_a_hidden_file_of_macos_is_not_a_shard(tmp_path: Path) -> None:
    write_rows(tmp_path / "a" / "0.parquet", [train_row(0)])
    (tmp_path / "a" / "._0.parquet").write_bytes(b"\0\5\26\7")
    assert len(read_table(tmp_path / "a", COLUMNS)[0]) == 1


def test_the_home_of_the_user_is_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_root(tmp_path / "root")
    monkeypatch.setenv("HOME", str(tmp_path))
    data = MMEBDataModule("~/root", batch_size=6, num_workers=0, collate=collate)
    data.setup()
    assert len(data.train_set) == 36
