"""A folder that appears under its name when it is complete, and not before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fanoise_lightning._disk import naming_a_full_disk

__all__ = ["check_out", "whole_folder"]


def check_out(path: str | Path) -> Path:
    """The absolute path of a folder that can be written to, with symbolic links followed.

    Args:
        path: a folder that does not exist, or is empty.

    Raises:
        ValueError: if there is something at `path`, or it is the current folder, which cannot be replaced.
        OSError: if it cannot be there: below a file, in a folder without rights, or with too long a name.
    """
    shown, path = path, Path(path).expanduser().resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "is not empty" if path.is_dir() else "is a file"
        raise ValueError(f"`{shown}` {what}: name a new or an empty folder")
    if path == Path.cwd():
        raise ValueError(f"`{shown}` is the current folder: name another one, such as `my-model`")
    parent = next(parent for parent in path.parents if parent.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"`{shown}` cannot be a folder: `{parent}` is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"`{shown}` cannot be written: you may not write to `{parent}`")
    return path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write to; if no error occurs, it is then renamed to ``path``.

    Args:
        path: a folder that does not exist, or is empty.

    Raises:
        ValueError: as :func:`check_out`.
        OSError: as :func:`check_out`, or if the disk is full, with the space that is left.
    """
    path = check_out(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")  # its name must not be too long
    try:
        with naming_a_full_disk(path):
            unfinished.mkdir()
            yield unfinished
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
