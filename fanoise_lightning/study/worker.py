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
from threading import Lock
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
        self.stopped = False
        self._forks = sys.platform == "linux" and not torch.accelerator.is_available()
        self._process: subprocess.Popen[str] | None = None
        self._starting = Lock()

    def run(self, folder: Path) -> int:
        """Run a folder; the exit code of its process, negative for a signal."""
        try:
            code = self._fork(folder) if self._forks else None
            return self._start(folder) if code is None else code
        except _StoppedError:
            return -signal.SIGTERM

    def stop(self, patience: float = 30.0) -> None:
        """End what is running, and run no more.

        Args:
            patience: seconds that a run has to end by itself, before it is killed.
        """
        with self._starting:
            self.stopped = True
        process = self._process
        if process is None or process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()  # a process that forks ends when its fork has ended
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _fork(self, folder: Path) -> int | None:
        """The exit code of a fork; ``None`` if there is no process to fork."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._popen(subprocess.PIPE, subprocess.PIPE, None)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):  # it is dead, or `stop` has closed its input
            print(json.dumps(str(folder)), file=self._process.stdin, flush=True)
            for answer in self._process.stdout:
                with suppress(ValueError):  # what a module prints when it is imported
                    return int(answer)
        return None

    def _start(self, folder: Path) -> int:
        with (folder / LOG).open("ab") as log:
            self._process = self._popen(subprocess.DEVNULL, log, log, str(folder))
            return self._process.wait()

    def _popen(
        self, stdin: int, stdout: int | IO[bytes], stderr: IO[bytes] | None, *arguments: str
    ) -> subprocess.Popen[str]:
        with self._starting:
            if self.stopped:
                raise _StoppedError
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


class _StoppedError(Exception):
    """Nothing may be started any more."""
