"""What the library reports: one line once per job, through the logger ``fanoise_lightning``.

Until an application configures logging, the lines go to stderr.
``logging.getLogger("fanoise_lightning").setLevel("WARNING")`` silences them.
"""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["report", "stay_unconfigured"]

# as Lightning finds the rank before the processes are connected; torchmetrics knows only LOCAL_RANK
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")

_logger = logging.getLogger("fanoise_lightning")


class _UntilConfigured(logging.StreamHandler):
    """Prints to stderr as long as this logger and the root have no other handler, which would print again."""

    def emit(self, record: logging.LogRecord) -> None:
        others = {*_logger.handlers, *logging.getLogger().handlers} - {self, logging.lastResort}
        if not others:
            super().emit(record)


def stay_unconfigured() -> None:
    """Let no library set up logging for the whole process, as a bare ``logging.info()`` of open_clip does.

    The root logger gets the handler that Python falls back on without any, so nothing else changes.
    """
    root = logging.getLogger()
    if not root.handlers and logging.lastResort is not None:
        root.addHandler(logging.lastResort)


if not _logger.handlers:
    _logger.addHandler(_UntilConfigured())
# Not left to the root's level: logging.warning(), called by any library, sets up a root that drops INFO.
if _logger.level == logging.NOTSET:
    _logger.setLevel(logging.INFO)


def report(message: str) -> None:
    """Log a line of information on rank 0."""
    if not _rank():
        _logger.info(message)


def _rank() -> int:
    dist = sys.modules.get("torch.distributed")  # not imported: `fanoise --help` needs no torch
    if dist is not None and dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)
