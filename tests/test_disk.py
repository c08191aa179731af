"""A file that the disk has no room for: the limit of the file size is a full disk that a test can have."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fanoise_lightning._disk import naming_a_full_disk
from fanoise_lightning._user_errors import is_users, one_line
from fanoise_lightning.callbacks._files import whole_file, write_json
from fanoise_lightning.encoders.feature_store import FeatureStore
from fanoise_lightning.training.checkpoints import AtomicCheckpointIO

SIZE = 1_000_000


@contextmanager
def room_for(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_a_checkpoint(path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.rand(SIZE // 4)}}, path)


def save_embeddings(path: Path) -> None:
    with whole_file(path) as unfinished:
        save_file({"embeddings": torch.rand(SIZE // 4)}, unfinished)


def save_scores(path: Path) -> None:
    write_json(path, list(range(SIZE // 4)))


@pytest.mark.parametrize("save", [save_a_checkpoint, save_embeddings, save_scores])
@pytest.mark.parametrize("room", [0, 1000, SIZE // 2])
def test_what_does_not_fit_is_named_and_leaves_what_was_there(
    save: Callable[[Path], None], room: int, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match=f"MB are free; .*'{path}'") as caught, room_for(room):
        save(path)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert is_users(caught.value)
    assert one_line(caught.value).startswith(f"{path}: ")
    if save is save_a_checkpoint:
        assert "it takes 1.0 MB, and" in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    save(path)  # with room again
    assert path.stat().st_size > SIZE


def test_features_that_do_not_fit_are_named_and_lose_nothing(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1000)
    rows = np.ones((2, 1000), np.float32)
    store.add(["00" * 16, "01" * 16], rows)
    with pytest.raises(OSError, match=rf"it takes 0\.0 MB, and .*'{tmp_path}/"), room_for(10_000):
        store.add(["02" * 16, "03" * 16], rows)
    again = FeatureStore(tmp_path, 1000)
    assert again.get([f"0{number}" * 16 for number in range(4)])[1].tolist() == [True, True, False, False]


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EACCES, "x"), RuntimeError("pos")])
def test_other_errors_stay_as_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, naming_a_full_disk(tmp_path / "file"):
        raise error
    assert caught.value is error
