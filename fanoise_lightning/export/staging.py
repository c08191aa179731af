"""A folder that appears under its name when it is complete, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fanoise_lightning._disk import naming_a_full_disk

__all__ = ["whole_folder"]


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write to; if no error occurs, it is then renamed to ``path``.

    Args:
        path: a folder that does not exist, or is empty.

    Raises:
        ValueError: if there is something at `path`.
        OSError: if its parent cannot be written to, or the disk is full, with the space that is left.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "is not empty" if path.is_dir() else "is a file"
        raise ValueError(f"`{path}` {what}: name a new or an empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming_a_full_disk(path):
            unfinished.mkdir()
            yield unfinished
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
