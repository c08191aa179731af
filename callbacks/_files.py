"""Where the callbacks write, and how: complete files or none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from fanoise_lightning._disk import naming_a_full_disk


def output_folder(trainer: Trainer, path: str | Path | None) -> Path:
    """``path``, or else the logger's folder, or else ``default_root_dir``. Call it on all ranks."""
    return Path(path if path is not None else trainer.log_dir or trainer.default_root_dir).expanduser()


def refuse_a_used_folder(trainer: Trainer, folder: Path) -> None:
    """Refuse a fit that would write its results next to another run's checkpoints. Call it on all ranks.

    Args:
        trainer: the trainer in a callback's ``on_train_start``, or before a fit that resumes nothing.
        folder: where the results go; its ``checkpoints/`` and the folders where this run saves are checked.

    Raises:
        ValueError: if one of them holds checkpoints that the fit neither resumes nor wrote.
    """
    savers = trainer.checkpoint_callbacks
    saved = any(
        getattr(saver, "last_model_path", "") or getattr(saver, "best_model_path", "") for saver in savers
    )
    if trainer.ckpt_path is not None or saved or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    folders = [folder / "checkpoints", *(Path(path) for s in savers if (path := getattr(s, "dirpath", None)))]
    if (folder / "scores.json").exists():
        folders.append(folder)
    found = [file for place in folders for file in sorted(place.glob("[!.]*.ckpt"))]
    used = trainer.strategy.broadcast(found[0] if found else None)  # or one rank would wait for the others
    if used is not None:
        raise ValueError(
            f"{used} is another run's, and the results of this one would lie beside it. "
            "Continue that run with `ckpt_path` ('last', or the file), choose another folder, or remove it"
        )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; if no error occurs, the file there then replaces ``path``.

    A run that is killed while it writes must neither leave half a file nor lose the previous one.

    Raises:
        OSError: if the disk is full, with the path and the space that is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with naming_a_full_disk(path):
            yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write JSON; NaN or infinity, which JSON does not have, is an error."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n", encoding="utf-8")
