"""What the library needs of Lightning and torch that has no public name, in one place."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

__all__ = ["batches_that_stepped", "in_backward", "should_log"]


def should_log(trainer: Trainer) -> bool:
    """Whether this training batch is one that the loggers write.

    Lightning counts batches that end in an optimiser step, not optimiser steps: with two optimisers
    ``global_step`` moves by two. ``log_every_n_steps=0``, as in ``Trainer(barebones=True)``, is never.
    """
    return trainer._logger_connector.should_update_logs


def batches_that_stepped(trainer: Trainer) -> int:
    """How many batches of the fit ended in an optimiser step: the step that loggers write."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def in_backward() -> bool:
    """Whether a backward pass is going on, as when a checkpointed function is computed again."""
    return torch._C._current_graph_task_id() != -1
