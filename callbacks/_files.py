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


def refuse_a_used_folder(trainer: Trainer, folder: Path) -> None:
    """Refuse a fit that would leave its results beside another run's checkpoints. Call it on all ranks.

    Args:
        trainer: as it is in a callback's ``on_train_start``, or before a fit that resumes nothing.
        folder: where the results go; its ``checkpoints/`` and wherever this run saves count too.

    Raises:
        ValueError: if one of them holds checkpoints, and the fit neither resumes one nor wrote them.
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
    used = trainer.strategy.broadcast(found[0] if found else None)  # or one rank might wait for the others
    if used is not None:
        raise ValueError(
            f"{used} is another run's, and the results of this one would lie beside it. Continue that run "
            "with `ckpt_path` ('last', or the file), or choose another folder, or remove it"
        )


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
