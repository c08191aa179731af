"""One run of a study, in a process of its own: ``python -m fanoise_lightning.study.run FOLDER``.

The folder holds ``run.json``, the plan. The run adds what ``fanoise fit`` writes, and ``finished.json`` or
``failed.json`` at its end. A run that was killed leaves neither, and is started again.

Without a folder, the process reads folders from standard input and forks for each: to import Lightning takes
longer than a small run.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only

from fanoise_lightning.callbacks._files import write_json
from fanoise_lightning.cli import FANoiseCLI
from fanoise_lightning.study.records import FAILED, FINISHED, PLAN, SCORES

__all__ = ["is_finished", "main", "serve"]

LOG, LOCK = "log.txt", "run.lock"


def is_finished(folder: Path) -> bool:
    """Whether the run in this folder has come to its end."""
    return (folder / FINISHED).exists()


def main(folder: Path) -> None:
    """Run what ``run.json`` in the folder describes.

    Two processes never work in one folder: the second waits for the first, which may belong to a study that
    was killed, and leaves a finished run alone.

    Raises:
        Exception: what ended the run, which ``failed.json`` holds too.
    """
    options = json.loads((folder / PLAN).read_text(encoding="utf-8"))["options"]
    if getattr(rank_zero_only, "rank", 0):  # started by the process that holds the lock
        FANoiseCLI(options)
        return
    with FileLock(folder / LOCK):
        if is_finished(folder):
            return
        _clear(folder)
        start = time.monotonic()
        try:
            FANoiseCLI(options)
            if not (folder / SCORES).exists():
                raise RuntimeError(
                    "the run ended without a validation, and so without scores: see `val_check_interval`"
                )
        except (Exception, SystemExit) as error:
            reason = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            write_json(folder / FAILED, reason, indent=1)
            raise
        write_json(folder / FINISHED, {"seconds": round(time.monotonic() - start, 3)}, indent=1)


def serve() -> None:
    """Run the folders that standard input names, one JSON string a line, and print the exit code of each.

    Each runs in a fork of this process, which so far has no threads and has not touched a GPU. The fork is
    what ``python -m fanoise_lightning.study.run FOLDER`` would be, and can start further processes like it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # for the fork alone: this process waits for its end
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every imported object
    atexit.register(gc.unfreeze)  # or extension modules report their frozen objects as leaks
    while line := sys.stdin.readline():
        folder = json.loads(line)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with open(os.devnull, "rb") as nothing, open(Path(folder) / LOG, "ab") as log:
                for target, source in enumerate((nothing, log, log)):
                    os.dup2(source.fileno(), target)
            sys.argv[1:] = [folder]
            return main(Path(folder))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            os.write(sys.stdout.fileno(), f"{code}\n".encode())
        except BrokenPipeError:  # the study was killed
            return


def _clear(folder: Path) -> None:
    """Remove what an attempt before this one left."""
    for path in folder.iterdir():
        if path.name in (PLAN, LOCK):
            continue
        if path.name == LOG:
            os.truncate(path, 0)  # what this process writes is appended
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1])) if sys.argv[1:] else serve()
