from __future__ import annotations

import io
import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fanoise_lightning.data.images.archives import Archive
from fanoise_lightning.data.images.decode import ImageError

METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def patch(path: Path, change: Callable[[bytearray, int, int], None]) -> Archive:
    """An archive with one member after `change` of its bytes, given where header and directory begin."""
    data = bytearray(path.read_bytes())
    change(data, data.index(b"PK\3\4"), data.index(b"PK\1\2"))
    path.write_bytes(data)
    return Archive(path)


@pytest.mark.parametrize("method", METHODS)
def test_members_are_those_of_zipfile(tmp_path: Path, method: str) -> None:
    source = random.Random(0)
    members = {
        f"{folder}/{number} ü.bin": source.randbytes(source.randrange(400)) * source.randrange(4)
        for folder in ("a", "b/c")
        for number in range(100)
    }
    path = write_zip(tmp_path / "x.zip", {"a/": b"", **members}, METHODS[method])
    archive = Archive(path)
    with zipfile.ZipFile(path) as expected:
        assert {name: archive.read(name) for name in members} == {
            name: expected.read(name) for name in members
        }
    assert "a/" not in archive
    assert archive.example in members
    for name in ("a", "a/100 ü.bin", ""):
        assert name not in archive
        with pytest.raises(ImageError, match="no such file in the archive"):
            archive.read(name)


def test_sizes_behind_the_data_and_zip64_are_read(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # cannot go back to fill in the sizes
        archive.writestr("piped", b"data" * 100)
    (tmp_path / "x.zip").write_bytes(pipe.getvalue())
    assert Archive(tmp_path / "x.zip").read("piped") == b"data" * 100
    with (
        zipfile.ZipFile(tmp_path / "y.zip", "w") as archive,
        archive.open("big", "w", force_zip64=True) as big,
    ):
        big.write(b"data")
    assert Archive(tmp_path / "y.zip").read("big") == b"data"


def test_bytes_before_the_archive_do_no_harm(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": b"data"})
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert Archive(path).read("a") == b"data"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_members_by_one_name_the_last_is_valid(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(100):
            archive.writestr(f"{number % 7}", f"{number}")
    archive = Archive(tmp_path / "x.zip")
    assert {int(archive.read(f"{name}")) for name in range(7)} == set(range(93, 100))


def test_an_empty_archive_has_no_file(tmp_path: Path) -> None:
    archive = Archive(write_zip(tmp_path / "x.zip", {}))
    assert ("a" in archive, archive.example) == (False, "")


def test_an_index_takes_few_bytes_a_member_and_survives_pickling(tmp_path: Path) -> None:
    members = {f"A-OKVQA/Train/COCO_train2014_{number:012}.jpg": b"x" for number in range(5000)}
    state = pickle.dumps(Archive(write_zip(tmp_path / "x.zip", members)))
    assert len(state) < 33 * len(members)
    assert pickle.loads(state).read("A-OKVQA/Train/COCO_train2014_000000000007.jpg") == b"x"


def test_reading_leaves_no_file_open(tmp_path: Path) -> None:
    archive = Archive(write_zip(tmp_path / "x.zip", {"a": b"data"}))
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    assert archive.read("a") == b"data"
    assert (os.listdir("/proc/self/fd") if before else []) == before


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_an_archive_that_ends_early_is_an_error_at_once(tmp_path: Path, kept: float) -> None:
    path = write_zip(tmp_path / "x.zip", {str(number): os.urandom(99) for number in range(100)})
    os.truncate(path, int(kept * path.stat().st_size))
    with pytest.raises(ValueError, match=r"x\.zip` is not a zip archive, or is truncated"):
        Archive(path)


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_checksum_is_an_error(tmp_path: Path, method: str) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": b"data"}, METHODS[method])

    def change(data: bytearray, header: int, directory: int) -> None:
        data[directory + 16] ^= 1

    with pytest.raises(ImageError, match=r"checksum \(CRC\)"):
        patch(path, change).read("a")


def test_broken_data_is_an_error(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": bytes(range(256))})

    def change(data: bytearray, header: int, directory: int) -> None:
        data[header + 31] = 0xFF  # an unknown kind of block

    with pytest.raises(ImageError, match="cannot be unpacked"):
        patch(path, change).read("a")


def test_a_hole_in_the_archive_is_an_error(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": b"data"})

    def change(data: bytearray, header: int, directory: int) -> None:
        data[header:directory] = bytes(directory - header)  # as of a download by ranges that lost one

    with pytest.raises(ImageError, match="no member where its directory says"):
        patch(path, change).read("a")


def test_an_archive_that_was_cut_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": b"data" * 100}, zipfile.ZIP_STORED)
    archive = Archive(path)
    for size in (100, 20):
        os.truncate(path, size)
        with pytest.raises(ImageError, match="the archive is broken"):
            archive.read("a")


def test_an_encrypted_member_is_an_error(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": b"data"})

    def change(data: bytearray, header: int, directory: int) -> None:
        data[header + 6] |= 1
        data[directory + 8] |= 1

    with pytest.raises(ImageError, match="encrypted"):
        patch(path, change).read("a")


def test_an_unknown_compression_is_an_error(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": b"data"}, zipfile.ZIP_BZIP2)
    with pytest.raises(ImageError, match="compression method 12"):
        Archive(path).read("a")


def test_a_bomb_is_refused_by_its_declared_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanoise_lightning.data.images.decode.MAX_BYTES", 10_000)
    archive = Archive(write_zip(tmp_path / "x.zip", {"a": bytes(10_001), "b": bytes(10_000)}))
    assert archive.read("b") == bytes(10_000)
    with pytest.raises(ImageError, match="10001 bytes are more than 10000"):
        archive.read("a")


def test_a_bomb_that_lies_about_its_size_is_not_unpacked(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a": bytes(50 * 2**20)})

    def change(data: bytearray, header: int, directory: int) -> None:
        data[directory + 24 : directory + 28] = struct.pack("<I", 1000)

    archive = patch(path, change)
    tracemalloc.start()
    with pytest.raises(ImageError, match="size or checksum"):
        archive.read("a")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
