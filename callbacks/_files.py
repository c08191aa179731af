"""Where the callbacks write, and how: whole files or none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer


def output_folder(trainer: Trainer, path: str | Path | None) -> Path:
    """``path``, else the logger's folder, else the trainer's ``default_root_dir``. Call it on all ranks."""
    return Path(path if path is not None else trainer.log_dir or trainer.default_root_dir)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when all went well.

    A run that is killed while it writes must not leave half a file, nor lose the one before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write JSON; a NaN or an infinity, which JSON does not have, is an error."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n", encoding="utf-8")
