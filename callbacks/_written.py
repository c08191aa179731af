"""What a run wrote, and where: the last line of every command that runs a trainer."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch import Trainer

from fanoise_lightning._log import report
from fanoise_lightning.callbacks._files import output_folder
from fanoise_lightning.callbacks.embedding_writer import EmbeddingWriter
from fanoise_lightning.callbacks.scoreboard_writer import ScoreboardWriter
from fanoise_lightning.callbacks.spectrum_monitor import SpectrumMonitor

_WRITERS = (EmbeddingWriter, ScoreboardWriter, SpectrumMonitor)
_COARSE = 0.1  # seconds by which the times of a file system may be behind the clock


def report_written(trainer: Trainer, since: float) -> None:
    """Log the files of a run, folder by folder. Call it on all ranks.

    Args:
        trainer: the trainer that ran, whose loggers, checkpoints and writers know their folders.
        since: when the run started, in seconds as `time.time` counts.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    folders = [output_folder(trainer, None)]
    folders += [
        output_folder(trainer, callback.path) for callback in callbacks if isinstance(callback, _WRITERS)
    ]
    savers = trainer.checkpoint_callbacks
    folders += [Path(path) for saver in savers if (path := getattr(saver, "dirpath", None))]
    written = {folder: _files(folder, since - _COARSE) for folder in dict.fromkeys(folders)}
    for folder, names in written.items():
        if names:
            report(f"wrote to {_shown(folder)}: {', '.join(names)}")
    if not any(written.values()):
        report("wrote no files")


def _files(folder: Path, since: float) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(file.name for file in entries if file.is_file() and file.stat().st_mtime >= since)


def _shown(folder: Path) -> str:
    """Relative to the working directory, if it is there."""
    return os.path.relpath(folder) if folder.resolve().is_relative_to(Path.cwd()) else str(folder)
