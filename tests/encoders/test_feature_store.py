"""Features on disk: whatever is read is what was written, or is not there."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from fanoise_lightning.encoders.feature_store import FeatureStore
from fanoise_lightning.sample import text_key

DIM = 3


def key(number: int) -> str:
    return text_key(str(number))


def row(number: int) -> np.ndarray:
    return np.full((1, DIM), number + 1, np.float32)


def fill(folder: Path, numbers: range) -> None:
    store = FeatureStore(folder, DIM)
    for number in numbers:
        store.add([key(number)], row(number))


def check(store: FeatureStore, present: range | list[int], asked: range) -> None:
    rows, found = store.get([key(number) for number in asked])
    assert found.tolist() == [number in present for number in asked]
    for number, value, there in zip(asked, rows, found):
        assert np.array_equal(value, row(number)[0] if there else np.zeros(DIM))


def test_what_was_added_is_found_by_this_and_other_stores(tmp_path):
    store, other = FeatureStore(tmp_path / "new", DIM), FeatureStore(tmp_path / "new", DIM)
    check(store, [], range(3))
    store.add([key(0), key(2)], np.concatenate([row(0), row(2)]))
    check(store, [0, 2], range(4))
    other.add([key(1)], row(1))
    check(store, [0, 1, 2], range(4))  # a miss looks for what others wrote
    check(pickle.loads(pickle.dumps(other)), [0, 1, 2], range(4))
    assert len(store) == 3


def test_the_same_key_twice_is_one_row(tmp_path):
    store = FeatureStore(tmp_path, DIM)
    store.add([key(0), key(0)], np.concatenate([row(0)] * 2))
    check(store, [0], range(2))
    assert len(store) == 1


def test_a_reader_that_follows_writers_reads_each_key_once(tmp_path, monkeypatch):
    writers, reader = [FeatureStore(tmp_path, DIM) for _ in range(3)], FeatureStore(tmp_path, DIM)
    read, fromfile = [], np.fromfile

    def count(*args, **kwargs):
        found = fromfile(*args, **kwargs)
        read.append(len(found))
        return found

    monkeypatch.setattr(np, "fromfile", count)
    present: set[int] = set()
    random = np.random.default_rng(0)
    for writer in random.integers(0, 3, 40):
        numbers = random.integers(0, 100, 5).tolist()
        writers[writer].add(list(map(key, numbers)), np.concatenate(list(map(row, numbers))))
        present |= set(numbers)
        check(reader, sorted(present), range(101))
    assert sum(read) == 40 * 5


def test_a_folder_that_was_emptied_is_filled_again(tmp_path):
    store, reader = FeatureStore(tmp_path, DIM), FeatureStore(tmp_path, DIM)
    store.add([key(0), key(1)], np.concatenate([row(0), row(1)]))
    check(reader, [0, 1], range(3))
    for file in tmp_path.iterdir():
        file.unlink()
    fill(tmp_path, range(2, 3))
    check(reader, [2], range(3))


@pytest.mark.parametrize("suffix", [".rows", ".keys"])
def test_a_file_that_was_cut_off_anywhere_loses_its_last_rows_and_nothing_else(tmp_path, suffix):
    fill(tmp_path / "whole", range(4))
    fill(tmp_path / "whole", range(10, 12))  # of another process
    cut = next(f for f in (tmp_path / "whole").glob(f"*{suffix}") if f.stat().st_size >= 48 and _rows(f) == 4)
    width = cut.stat().st_size // 4
    for size in range(cut.stat().st_size + 1):
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        os.truncate(tmp_path / "cut" / cut.name, size)
        store = FeatureStore(tmp_path / "cut", DIM)
        check(store, [*range(size // width), 10, 11], range(12))
        lost = range(size // width, 4)
        for number in lost:  # is computed again
            store.add([key(number)], row(number))
        check(FeatureStore(tmp_path / "cut", DIM), [*range(4), 10, 11], range(12))


def _rows(file: Path) -> int:
    return file.stat().st_size // (16 if file.suffix == ".keys" else 4 * DIM)


def test_a_lost_file_of_rows_takes_its_keys_with_it(tmp_path):
    fill(tmp_path, range(2))
    fill(tmp_path, range(2, 4))
    next(tmp_path.glob("*.rows")).unlink()
    assert len(FeatureStore(tmp_path, DIM)) == 2


def test_processes_and_forks_write_at_once(tmp_path):
    context = get_context("fork")
    parts = [range(start, start + 40) for start in (0, 40, 20)]
    jobs = [context.Process(target=fill, args=(tmp_path, part)) for part in parts]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    check(FeatureStore(tmp_path, DIM), range(80), range(82))
    store = FeatureStore(tmp_path, DIM)
    store.add([key(90)], row(90))
    child = context.Process(target=store.add, args=([key(91)], row(91)))
    child.start()
    child.join()
    assert child.exitcode == 0
    store.add([key(92)], row(92))
    check(FeatureStore(tmp_path, DIM), [90, 91, 92], range(90, 93))


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, DIM)
    store.add([key(0)], row(0))
    data, names = store._files()

    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_writer", (os.getpid(), Full(), names))
    with pytest.raises(OSError, match="No space left"):
        store.add([key(1)], row(1))
    check(FeatureStore(tmp_path, DIM), [0], range(2))
    data.close()


class Breaks:
    """A file that writes some of the bytes, or all of them, and then fails."""

    def __init__(self, file, share: float) -> None:
        self.file, self.share = file, share

    def write(self, part: bytes) -> None:
        self.file.write(part[: round(self.share * len(part))])
        self.file.flush()
        raise KeyboardInterrupt if self.share == 1 else OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        self.file.flush()


@pytest.mark.parametrize("share", [0, 0.4, 1])
@pytest.mark.parametrize("broken", ["rows", "keys"])
def test_what_is_added_after_a_write_that_failed_half_way_is_right(tmp_path, broken, share):
    store = FeatureStore(tmp_path, DIM)
    store.add([key(0)], row(0))
    data, names = store._files()
    store._writer = (
        os.getpid(),
        Breaks(data, share) if broken == "rows" else data,
        Breaks(names, share) if broken == "keys" else names,
    )
    with pytest.raises((OSError, KeyboardInterrupt)):
        store.add([key(1)], row(1))
    for number in range(2, 5):
        store.add([key(number)], row(number))
    there = [0, 2, 3, 4, *([1] if (broken, share) == ("keys", 1) else [])]
    check(FeatureStore(tmp_path, DIM), there, range(6))
