"""What the library needs of Lightning and torch that has no public name, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol, _load
from lightning.pytorch import Trainer
from lightning.pytorch.core.saving import load_hparams_from_tags_csv, load_hparams_from_yaml

__all__ = [
    "CLASS_PATH",
    "INSTANTIATE_MODULE",
    "INSTANTIATOR",
    "CheckpointMerger",
    "batches_that_stepped",
    "in_backward",
    "is_accumulating",
    "is_local",
    "load_checkpoint",
    "load_hparams_file",
    "should_log",
]

INSTANTIATOR = "_instantiator"
"""The hyperparameter that names the function by which ``load_from_checkpoint`` builds a module."""

INSTANTIATE_MODULE = "lightning.pytorch.cli.instantiate_module"
"""That function for modules that LightningCLI built: it reads the other hyperparameters as a config."""

CLASS_PATH = "_class_path"
"""The hyperparameter that names the class of a module, where LightningCLI took any subclass."""


def should_log(trainer: Trainer) -> bool:
    """Whether this training batch is one that the loggers write.

    Lightning counts batches that end in an optimiser step, not optimiser steps: with two optimisers
    ``global_step`` moves by two. ``log_every_n_steps=0``, as in ``Trainer(barebones=True)``, is never.
    """
    return trainer._logger_connector.should_update_logs


def batches_that_stepped(trainer: Trainer) -> int:
    """How many batches of the fit ended in an optimiser step: the step that loggers write."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the latest training batch left its gradients for a later one to step with."""
    return trainer.fit_loop._should_accumulate()


def is_local(path: Any) -> bool:
    """Whether a path is one of a local file system, not ``s3://...`` or the like."""
    return _is_local_file_protocol(path)


def load_checkpoint(path: Any, weights_only: bool) -> dict[str, Any]:
    """Read a checkpoint from a path, URL or open file; of its tensors only shapes and dtypes."""
    return _load(path, map_location="meta", weights_only=weights_only)


def load_hparams_file(path: Any) -> Mapping[str, Any]:
    """Read a file of hyperparameters: CSV by its name, else YAML."""
    if str(path).lower().endswith(".csv"):
        return load_hparams_from_tags_csv(path)
    return load_hparams_from_yaml(path, use_omegaconf=False)


class CheckpointMerger:
    """Gives a LightningCLI a public method for merging a checkpoint's hyperparameters into the config.

    List it before LightningCLI among the bases, and override :meth:`merge_checkpoint`.
    """

    def merge_checkpoint(self) -> None:
        """Called once the command line is parsed and before anything is built."""
        raise NotImplementedError

    def _parse_ckpt_path(self) -> None:
        self.merge_checkpoint()


def in_backward() -> bool:
    """Whether a backward pass is going on, as when a checkpointed function is computed again."""
    return torch._C._current_graph_task_id() != -1
