from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_roots import train_row, write_rows
from datasets import load_dataset, load_dataset_builder

from fanoise_lightning.data.rows.records import TRAIN_COLUMNS
from fanoise_lightning.data.rows.shards import FileRows
from fanoise_lightning.data.sources.hub_repository import HUB, HubRepository
from fanoise_lightning.data.sources.repository import FolderRepository
from fanoise_lightning.evaluation.mmeb import TRAIN_NAMES

SHARDS = ["NIGHTS/original-00000-of-00002.parquet", "NIGHTS/original-00001-of-00002.parquet"]


@pytest.fixture
def folder(snapshot: Path, tmp_path: Path) -> Path:
    """A copy of MMEB-train's rows and card, to change."""
    return Path(
        shutil.copytree(snapshot / "MMEB-train", tmp_path / "train", ignore=lambda *_: ["images_zip"])
    )


def with_card(folder: Path, configs: str) -> FolderRepository:
    (folder / "README.md").write_text(f"---\n{configs}\n---\n# A card\n")
    return FolderRepository(folder)


def test_the_files_of_each_split_are_those_that_datasets_finds(snapshot: Path) -> None:
    repository = FolderRepository(snapshot / "MMEB-train")
    assert set(repository.patterns) == set(TRAIN_NAMES)
    for config in repository.patterns:
        expected = load_dataset_builder(str(snapshot / "MMEB-train"), config).config.data_files
        assert set(repository.patterns[config]) == {"original", "diverse_instruction"} == set(expected)
        for split, files in expected.items():
            assert [str(file) for file in repository.files(config, split)] == sorted(files)


@pytest.mark.parametrize(
    "data_files",
    [
        "data_files: NIGHTS/original-*",
        "data_files: NIGHTS/**/original-*",
        "data_files: [NIGHTS/original-00000-of-00002.parquet, NIGHTS/original-00001-of-00002.parquet]",
        "data_files: [{split: train, path: [NIGHTS/original-00000-*, NIGHTS/original-00001-*]}]",
    ],
)
def test_every_form_of_a_card_is_read_as_datasets_reads_it(folder: Path, data_files: str) -> None:
    repository = with_card(folder, f"configs:\n- config_name: other\n  {data_files}")
    expected = load_dataset_builder(str(folder), "other").config.data_files
    assert [str(file) for file in repository.files("other", "train")] == expected["train"]
    assert repository.shards("other", "train") == SHARDS


@pytest.mark.parametrize("pattern", ["*", "*/*", "a/**", "**", "**/*.parquet", "a/x-[0-9]*", "a/?.parquet"])
def test_a_pattern_finds_the_same_files_on_the_hub_and_in_a_folder(tmp_path: Path, pattern: str) -> None:
    files = ["README.md", "a/b/y.parquet", "a/x-1.parquet", "a/x-1/z.parquet", "a/y.parquet", "c.parquet"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    hub = HubRepository(f"{HUB}user/name")
    vars(hub)["_sizes"] = dict.fromkeys(files)
    assert hub.find(pattern) == FolderRepository(tmp_path).find(pattern) != []


def test_without_a_card_each_folder_is_a_config(folder: Path) -> None:
    (folder / "README.md").unlink()
    pq.write_table(pa.table({"a": [1]}), folder / "NIGHTS" / "test.parquet")
    repository = FolderRepository(folder)
    assert repository.shards("NIGHTS", "original") == SHARDS
    assert repository.shards("NIGHTS", "test") == ["NIGHTS/test.parquet"]
    assert set(repository.patterns) == set(TRAIN_NAMES)
    assert repository.num_rows("NIGHTS", "original") == 12


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        ("NIGHT", "original", "unknown config of .*train. `NIGHT`; did you mean `NIGHTS`"),
        ("NIGHTS", "orginal", "unknown split of config `NIGHTS`.*`orginal`; did you mean `original`"),
        ("NIGHTS", "test", "Known: original, diverse_instruction"),
    ],
)
def test_an_unknown_config_or_split_gets_the_nearest_name(
    snapshot: Path, config: str, split: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FolderRepository(snapshot / "MMEB-train").shards(config, split)


@pytest.mark.parametrize("lost", SHARDS)
def test_a_shard_that_is_missing_is_not_overlooked(folder: Path, lost: str) -> None:
    (folder / lost).unlink()
    with pytest.raises(FileNotFoundError, match=rf"`NIGHTS`.*1 of 2 shards.*number {lost[-22:-17]}"):
        FolderRepository(folder).shards("NIGHTS", "original")


def test_a_config_without_files_says_what_was_looked_for(folder: Path) -> None:
    shutil.rmtree(folder / "NIGHTS")
    with pytest.raises(FileNotFoundError, match=r"`NIGHTS`.*expected NIGHTS/original-\*"):
        FolderRepository(folder).shards("NIGHTS", "original")
    assert not FolderRepository(folder).is_whole("NIGHTS", "original")
    assert FolderRepository(folder).is_whole("CIRR", "original")


def test_rows_are_counted_and_compared_with_the_card(folder: Path) -> None:
    assert FolderRepository(folder).num_rows("NIGHTS", "original") == 12
    table = pq.read_table(folder / SHARDS[1])
    pq.write_table(table.slice(1), folder / SHARDS[1])
    with pytest.raises(ValueError, match=r"`NIGHTS`.*2 files hold 11 rows, its README\.md says 12"):
        FolderRepository(folder).num_rows("NIGHTS", "original")


def test_a_torn_file_is_named(folder: Path) -> None:
    file = folder / SHARDS[1]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{file}` cannot be read as parquet.*remove the file and fetch it"):
        FolderRepository(folder).num_rows("NIGHTS", "original")
    assert not FolderRepository(folder).is_whole("NIGHTS", "original")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("configs: [", "card of .* cannot be read"),
        ("configs:\n- data_files: x", "must give `config_name` and `data_files`.*config_name"),
        ("configs:\n- config_name: x", "must give `config_name` and `data_files`.*data_files"),
    ],
)
def test_a_card_that_cannot_be_used_is_an_error(folder: Path, card: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_card(folder, card).shards("NIGHTS", "original")


@pytest.mark.parametrize("location", ["hf://datasets/TIGER-Lab", "hf://datasets/a/b/c"])
def test_a_hub_address_names_user_and_data_set(location: str) -> None:
    with pytest.raises(ValueError, match=f"{location}.*expected {HUB}<user>/<name>"):
        HubRepository(location)


def read(rows: FileRows) -> list[dict[str, Any]]:
    """The rows as they are stored, without their origin."""
    tables = [table for shard in range(rows.num_shards) for table in rows.read(shard)]
    return [row for table in tables for row in table.drop_columns(["file", "row"]).to_pylist()]


def test_a_stream_gives_the_rows_that_datasets_gives(snapshot: Path) -> None:
    path = str(snapshot / "MMEB-train")
    expected = load_dataset(path, "CIRR", split="original", streaming=True)
    assert read(FolderRepository(path).stream("CIRR", "original", TRAIN_COLUMNS)) == list(expected)


@pytest.mark.parametrize(
    "outside", ["../../outside.parquet", "NIGHTS/../../outside.parquet", "{root}/outside.parquet"]
)
@pytest.mark.parametrize("form", ["{path}", "[{path}]", "[{{split: train, path: [{path}]}}]"])
def test_a_card_cannot_name_rows_outside_the_repository(folder: Path, outside: str, form: str) -> None:
    path = outside.format(root=folder.parent)
    for place in (folder.parent, folder.parent.parent):
        shutil.copy(folder / SHARDS[0], place / "outside.parquet")
    repository = with_card(folder, f"configs:\n- config_name: other\n  data_files: {form.format(path=path)}")
    for ask in (repository.shards, repository.num_rows):
        with pytest.raises(
            ValueError, match=r"card of .*outside\.parquet' in `data_files` must be a path inside"
        ):
            ask("other", "train")


@pytest.mark.parametrize("path", ["''", "7", "[null]"])
def test_a_card_must_name_files_by_paths(folder: Path, path: str) -> None:
    repository = with_card(folder, f"configs:\n- config_name: other\n  data_files: {path}")
    with pytest.raises(ValueError, match=r"the card of .*`data_files`"):
        repository.shards("other", "train")


def test_each_row_group_is_a_shard(tmp_path: Path) -> None:
    rows = [train_row(number) for number in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=4)
    files = FileRows([tmp_path / "rows.parquet"], TRAIN_COLUMNS)
    assert files.num_rows == 10
    shards = [pa.concat_tables(files.read(shard)) for shard in range(files.num_shards)]
    assert [table["row"].to_pylist() for table in shards] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [table["qry"].to_pylist() for table in shards] == [
        ["q0", "q1", "q2", "q3"],
        ["q4", "q5", "q6", "q7"],
        ["q8", "q9"],
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_any_part_of_a_shard_can_be_read(tmp_path: Path, suffix: str) -> None:
    files = FileRows(
        [write_rows(tmp_path / f"rows{suffix}", [train_row(number) for number in range(150)])], TRAIN_COLUMNS
    )
    for skip, limit in ((0, None), (64, None), (70, 3), (60, 70), (149, 5), (0, 150), (150, None), (10, 0)):
        parts = [text for table in files.read(0, skip, limit) for text in table["qry"].to_pylist()]
        assert parts == [f"q{row}" for row in range(150)][skip : None if limit is None else skip + limit]
