"""Starts the processes of runs, one at a time, in one environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch

from fanoise_lightning.study.run import LOG

__all__ = ["Worker"]

_COMMAND = (sys.executable, "-m", "fanoise_lightning.study.run")


class Worker:
    """Runs one folder after the other.

    On Linux without a GPU the runs are forks of one process that has imported everything. Elsewhere each
    starts from nothing, since the state of a GPU does not survive a fork.

    Args:
        environment: of the processes.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self._forks = sys.platform == "linux" and not torch.accelerator.is_available()
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self, folder: Path) -> int:
        """Run a folder; the exit code of its process, negative for a signal."""
        code = self._fork(folder) if self._forks else None
        if code is None and self._stopped:
            return -signal.SIGTERM
        return self._start(folder) if code is None else code

    def stop(self) -> None:
        """End what is running, and run no more."""
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()

    def _fork(self, folder: Path) -> int | None:
        """The exit code of a fork; ``None`` if there is no process to fork."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._popen(subprocess.PIPE, subprocess.PIPE, None)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(json.dumps(str(folder)), file=self._process.stdin, flush=True)
            if answer := self._process.stdout.readline():
                return int(answer)
        return None

    def _start(self, folder: Path) -> int:
        with (folder / LOG).open("wb") as log:
            self._process = self._popen(subprocess.DEVNULL, log, log, str(folder))
            return self._process.wait()

    def _popen(
        self, stdin: int, stdout: int | IO[bytes], stderr: IO[bytes] | None, *arguments: str
    ) -> subprocess.Popen[str]:
        # a session of its own, so that `stop` reaches what it has started
        return subprocess.Popen(
            [*_COMMAND, *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=dict(self.environment),
            start_new_session=True,
        )
