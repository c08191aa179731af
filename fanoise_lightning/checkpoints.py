"""Checkpoint files that are either whole or not there."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO

__all__ = ["AtomicCheckpointIO", "naming_the_file"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and moves it there when it is whole and on the disk.

    Lightning's own writes to the system's folder for temporary files: where that is another file system, the
    move to the checkpoint's place is a copy, and a kill leaves half of one. What a killed write leaves here
    is ``<name>.ckpt.tmp``, which nothing takes for a checkpoint, and which the next write of that name
    overwrites. Paths that are not of a local file system go Lightning's way.

    The ``fanoise`` command uses it wherever Lightning would use its own.

    Raises:
        ValueError: if a checkpoint cannot be read, with its path.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None or not _is_local_file_protocol(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # not `*.ckpt`: Lightning takes every last*.ckpt for a last checkpoint
        unfinished = path.with_name(f"{path.name}.tmp")
        try:
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # or the new name might reach the disk before the data does
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with naming_the_file(path):
            return super().load_checkpoint(path, *args, **kwargs)


@contextmanager
def naming_the_file(path: Any) -> Iterator[None]:
    """Say which checkpoint it was that torch could not read.

    Raises:
        ValueError: in the place of torch's error.
    """
    try:
        yield
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        size = f" ({os.path.getsize(path)} bytes)" if os.path.isfile(path) else ""
        raise ValueError(
            f"the checkpoint {path}{size} cannot be read; if it is half of one, from a full disk or a copy "
            f"that broke off, go on from another with `ckpt_path`, or remove it to start afresh ({error})"
        ) from error
