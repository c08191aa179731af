"""Checkpoint files that are either whole or not there, and read as data."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol, _load
from lightning.pytorch.core.saving import load_hparams_from_tags_csv, load_hparams_from_yaml
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fanoise_lightning.training.describe import with_public_paths

__all__ = ["AtomicCheckpointIO", "naming_the_file", "read_hyperparameters"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and moves it there when it is whole and on the disk.

    Lightning's own writes to the system's folder for temporary files: where that is another file system, the
    move to the checkpoint's place is a copy, and a kill leaves half of one. What a killed write leaves here
    is ``<name>.ckpt.tmp``, which nothing takes for a checkpoint, and which the next write of that name
    overwrites. Paths that are not of a local file system go Lightning's way.

    It unpickles nothing but tensors and plain data unless ``weights_only=False`` is asked for, wherever a
    checkpoint comes from: Lightning's own runs what is pickled in one that has a URL.

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

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        with naming_the_file(path):
            return super().load_checkpoint(path, map_location, weights_only is None or weights_only)


def read_hyperparameters(
    path: Any, hparams_file: Any = None, weights_only: bool = True, key: str = "hyper_parameters"
) -> dict[str, Any]:
    """What a checkpoint says of how its module was built; of the weights, nothing is read.

    Args:
        path: a path, URL or open file.
        hparams_file: a YAML or CSV file that says it in the checkpoint's stead.
        weights_only: unpickle nothing but tensors and plain data.
        key: under which the checkpoint has it.

    Raises:
        ValueError: if the checkpoint cannot be read, or has it in a form in which arguments could be hidden.
    """
    if hparams_file is not None:
        if str(hparams_file).lower().endswith(".csv"):
            return with_public_paths(load_hparams_from_tags_csv(hparams_file))
        return with_public_paths(load_hparams_from_yaml(hparams_file, use_omegaconf=False))
    start = path.tell() if hasattr(path, "tell") else None
    with naming_the_file(path):
        checkpoint = _load(path, map_location="meta", weights_only=weights_only)
    if start is not None:
        path.seek(start)
    # names that Lightning reads arguments from, too; it has written none of them since version 0.8
    if old := [name for name in ("hparams", "module_arguments") if checkpoint.get(name)]:
        raise ValueError(f"the checkpoint {path} has hyperparameters under {old[0]!r}, which are not read")
    found = checkpoint.get(key) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"the checkpoint {path} has {key}={found!r}, which is no dict")
    return with_public_paths(dict(found))


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
