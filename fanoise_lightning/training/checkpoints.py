"""Checkpoint files: written whole or not at all, and read as data."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO

from fanoise_lightning._disk import naming_a_full_disk
from fanoise_lightning._lightning import is_local, load_checkpoint, load_hparams_file
from fanoise_lightning.training.describe import with_public_paths
from fanoise_lightning.training.trust import described_arguments

__all__ = ["AtomicCheckpointIO", "naming_the_file", "read_arguments", "read_hyperparameters"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a file next to it, and renames that file once it is complete and on disk.

    Lightning's own writes to the system's temporary folder. If that is on another file system, moving the
    checkpoint into place copies it, and a kill leaves half a checkpoint. Here a killed write leaves
    ``<name>.ckpt.tmp``, which nothing takes for a checkpoint and the next write of that name overwrites.
    Paths outside local file systems are left to Lightning.

    Only tensors and plain data are unpickled, wherever a checkpoint comes from, unless you ask for
    ``weights_only=False``. Lightning's own executes what is pickled in a checkpoint from a URL.

    The ``fanoise`` command uses it wherever Lightning would use its own.

    Raises:
        ValueError: if a checkpoint cannot be read, with its path.
        OSError: if the disk is full, with the path, the size and the space that is left.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options is not None or not is_local(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # not `*.ckpt`: Lightning takes every last*.ckpt for a last checkpoint
        unfinished = path.with_name(f"{path.name}.tmp")
        try:
            with naming_a_full_disk(path, _size(checkpoint)), unfinished.open("wb") as file:
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


def _size(value: Any) -> int:
    """The bytes of all tensors in a checkpoint."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 0


def read_arguments(
    cls: type[LightningModule] | type[LightningDataModule],
    path: Any,
    hparams_file: Any,
    weights_only: bool | None,
    given: Mapping[str, Any],
    allow: str | Iterable[str] | None,
) -> dict[str, Any]:
    """All arguments with which ``load_from_checkpoint`` is to build a module or data module.

    Args:
        cls: its class.
        path: as :func:`read_hyperparameters`.
        hparams_file: as :func:`read_hyperparameters`.
        weights_only: ``False`` unpickles objects too.
        given: the arguments that the caller passes; they win over the checkpoint's.
        allow: as :func:`~fanoise_lightning.training.trust.check_arguments`.

    Raises:
        ValueError: if the checkpoint cannot be read, or names a class that is not allowed.
    """
    safe = weights_only is not False
    hyperparameters = read_hyperparameters(path, hparams_file, safe, cls.CHECKPOINT_HYPER_PARAMS_KEY)
    objects = not safe and hparams_file is None
    return {**described_arguments(cls, hyperparameters, given, allow, objects), **given}


def read_hyperparameters(
    path: Any, hparams_file: Any = None, weights_only: bool = True, key: str = "hyper_parameters"
) -> dict[str, Any]:
    """How a checkpoint describes the construction of its module. The weights are not read.

    Args:
        path: a path, URL or open file.
        hparams_file: a YAML or CSV file to read instead of the checkpoint.
        weights_only: unpickle nothing but tensors and plain data.
        key: the key of the checkpoint's hyperparameters.

    Raises:
        ValueError: if there is no path, the checkpoint cannot be read or is not Lightning's, or it has
            hyperparameters in a form that could hide some.
    """
    if path is None or path == "":
        raise ValueError(
            f"`checkpoint_path` must be a path, URL or open file, got {path!r}; Lightning's "
            "`best_model_path` is empty until a checkpoint is saved"
        )
    if hparams_file is not None:
        return with_public_paths(load_hparams_file(hparams_file))
    start = path.tell() if hasattr(path, "tell") else None
    with naming_the_file(path):
        checkpoint = load_checkpoint(path, weights_only)
    if start is not None:
        path.seek(start)
    # a data module needs no weights
    if not isinstance(checkpoint, Mapping) or (key == "hyper_parameters" and "state_dict" not in checkpoint):
        raise ValueError(
            f"{path} is not a checkpoint of Lightning: it has no `state_dict`; pass one that "
            "`fanoise fit` or `Trainer.save_checkpoint` wrote"
        )
    for old in ("hparams", "module_arguments"):  # Lightning reads these too; it wrote them before version 0.8
        if checkpoint.get(old):
            raise ValueError(f"the checkpoint {path} has hyperparameters under {old!r}, which are not read")
    found = checkpoint.get(key) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"the checkpoint {path} has {key}={found!r}, which is not a dict")
    return with_public_paths(dict(found))


@contextmanager
def naming_the_file(path: Any) -> Iterator[None]:
    """Say which checkpoint torch could not read.

    Raises:
        ValueError: instead of torch's error.
    """
    try:
        yield
    except OSError:  # names the file
        raise
    except Exception as error:  # what the bytes of another kind of file lead to: any, IndexError among them
        named = isinstance(path, (str, Path)) and os.path.isfile(path)
        size = f" ({os.path.getsize(path)} bytes)" if named else ""
        raise ValueError(
            f"the checkpoint {path}{size} cannot be read; if it is incomplete, because the disk was full or "
            "a copy was interrupted, resume from another with `ckpt_path`, or remove it to start over "
            f"({_reason(error)})"
        ) from error


def _reason(error: Exception) -> str:
    """What torch says about a file, without its advice to run the code in it."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    sentence = re.split(r"\.?\s*\n|\. (?=[A-Z])", text)[0]
    return sentence if isinstance(error, (RuntimeError, pickle.UnpicklingError)) else "not a file of torch"
