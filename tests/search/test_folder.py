"""The folder of embeddings: what is read is what was written, and what is missing or damaged is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from fanoise_lightning.search.folder import EmbeddingFolder, Row, read_notes, write_shard

SIZES = (3, 0, 2)
EMBEDDINGS = torch.arange(20.0).reshape(5, 4)
ROWS = [Row(f"sku-{row}", f"text {row}", "a.png" if row % 2 else "") for row in range(5)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    start = 0
    for number, size in enumerate(SIZES):
        own = slice(start, start + size)
        rows = pa.Table.from_pylist(
            [row._asdict() for row in ROWS[own]], pa.schema([(name, pa.string()) for name in Row._fields])
        )
        write_shard(tmp_path, f"{number:05d}", EMBEDDINGS[own].half(), rows, {"key": number})
        start += size
    manifest = {
        "format": 1,
        "model": {"fingerprint": "abc", "description": None, "checkpoint": None},
        "dimension": 4,
        "dtype": "float16",
        "normalized": True,
        "rows": 5,
        "source": "mine",
        "image_root": None,
        "shards": [{"name": f"{number:05d}", "rows": size} for number, size in enumerate(SIZES)],
        "skipped": [],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_rows_and_embeddings_come_back_in_order(path: Path) -> None:
    folder = EmbeddingFolder(path)
    assert [shard.shape for shard in folder.shards()] == [(3, 4), (0, 4), (2, 4)]
    assert torch.cat(list(folder.shards())).tolist() == EMBEDDINGS.tolist()
    assert [folder.row(number) for number in range(len(folder))] == ROWS
    assert list(map(Row._make, zip(*folder.columns.to_pydict().values()))) == ROWS
    with pytest.raises(IndexError, match="there is no row 5 in"):
        folder.row(5)


def test_stock_libraries_read_the_files(path: Path) -> None:
    np.testing.assert_array_equal(load_file(path / "00002.safetensors")["embeddings"], EMBEDDINGS[3:].numpy())
    assert pq.read_table(path / "00002.parquet").to_pylist() == [row._asdict() for row in ROWS[3:]]


def test_embeddings_are_mapped_not_read(path: Path) -> None:
    """What is written to the file afterwards is seen through the tensor."""
    shard = next(EmbeddingFolder(path).shards())
    with (path / "00000.safetensors").open("r+b") as file:
        file.seek(-2, 2)  # the last number
        file.write(np.float16(7).tobytes())
    assert shard[-1, -1] == 7


def test_blocks_are_the_rows_in_order(path: Path) -> None:
    """Of a file too that other tensors come first in."""
    save_file({"a": torch.ones(7), "embeddings": EMBEDDINGS[:3].half()}, path / "00000.safetensors")
    blocks = EmbeddingFolder(path).blocks(2)
    assert [(block.first, block.shape) for block in blocks] == [(0, (2, 4)), (2, (1, 4)), (3, (2, 4))]
    assert torch.cat([block.read() for block in blocks]).tolist() == EMBEDDINGS.tolist()
    cut(path / "00002.safetensors")
    with pytest.raises(ValueError, match=r"00002\.safetensors` is damaged \(it ends too early\)"):
        blocks[-1].read()


def test_notes_of_a_shard(path: Path) -> None:
    assert read_notes(path, "00002") == {"key": 2, "rows": 2}
    assert read_notes(path, "00003") is None
    (path / "00002.parquet").unlink()
    assert read_notes(path, "00002") is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("name", ["00002.safetensors", "00002.parquet"])
def test_a_missing_part_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}` is missing; .* run the same `fanoise embed`"):
        EmbeddingFolder(path)


@pytest.mark.parametrize("name", ["00002.safetensors", "00002.parquet"])
def test_a_damaged_part_is_named(path: Path, name: str) -> None:
    cut(path / name)
    folder = EmbeddingFolder(path)
    with pytest.raises(ValueError, match=rf"{name}` is damaged"):
        list(folder.shards()) and folder.row(4)


@pytest.mark.parametrize(
    ("other", "message"),
    [("00000.safetensors", r"holds \(3, 4\) numbers"), ("00000.parquet", "holds 3 rows")],
)
def test_a_part_of_another_shard_is_found(path: Path, other: str, message: str) -> None:
    (path / other.replace("00000", "00002")).write_bytes((path / other).read_bytes())
    folder = EmbeddingFolder(path)
    with pytest.raises(ValueError, match=message):
        list(folder.shards()) and folder.row(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("rows"), "it has no `rows`"),
        (lambda m: m.pop("source"), "it has no `source`"),
        (lambda m: m.pop("image_root"), "it has no `image_root`"),
        (lambda m: m.update(image_root=5), "`image_root` is 5"),
        (lambda m: m.update(rows=4), "`rows` is 4, its shards have 5"),
        (lambda m: m.update(rows=5.0), r"`rows` is 5\.0"),
        (lambda m: m.update(dimension=-1), "`dimension` is -1"),
        (lambda m: m.update(dimension=True), "`dimension` is True"),
        (lambda m: m.update(normalized=False), "`normalized` is False"),
        (lambda m: m.update(skipped=["a"]), "`skipped` is"),
        (lambda m: m["model"].update(checkpoint=5), "`model` is"),
        (lambda m: m["model"].update(description="os.system"), "`model` is"),
        (lambda m: m["shards"].__setitem__(1, m["shards"][0]), "`shards` is"),
        (lambda m: m.update(format=2), "has format 2, this version reads 1"),
        (lambda m: m["shards"][0].update(name="../../etc/00000"), "`shards` is"),
        (lambda m: m["shards"][0].update(rows=-3), "`shards` is"),
        (lambda m: m.update(dtype="object"), "`dtype` is 'object'"),
        (lambda m: m.update(model={}), "`model` is {}"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        EmbeddingFolder(path)


def test_a_folder_that_is_none_is_refused(path: Path, tmp_path: Path) -> None:
    cut(path / "manifest.json")
    with pytest.raises(ValueError, match=r"manifest\.json` is damaged"):
        EmbeddingFolder(path)
    (path / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
        EmbeddingFolder(path)


def test_a_file_that_cannot_be_written_leaves_the_earlier_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(file: Path, data: bytes) -> None:
        file.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(path, "00001", EMBEDDINGS, pa.table(dict.fromkeys(Row._fields, ["a"] * 5)), {})
    after = {file.name: file.read_bytes() for file in path.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"00001.parquet"}
    assert after.keys() == before.keys()


def test_a_row_without_a_text_is_damage(path: Path) -> None:
    pq.write_table(
        pa.table({"id": ["a", "b"], "text": ["a", None], "image": ["", ""]}), path / "00002.parquet"
    )
    with pytest.raises(ValueError, match=r"00002\.parquet` is damaged \(a row without `text`\)"):
        EmbeddingFolder(path).row(4)
