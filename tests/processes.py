"""Running a function on several ranks, as processes of this machine with a gloo process group."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import multiprocessing


def run_on_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60) -> list[Any]:
    """What ``fn(rank, *args)`` returns on each rank; processes are forked, so ``fn`` may be a closure.

    The environment is that of torchrun: a Trainer of ``devices=world_size, strategy="ddp"`` joins the group.
    Tensors come back as copies. Any exception on a rank is raised here with its traceback.

    Raises:
        RuntimeError: if a rank fails; the message holds the tracebacks of all ranks that did.
        TimeoutError: if a rank hangs for ``timeout`` seconds; all are killed.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_run, args=(fn, rank, world_size, Path(folder), args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout
        try:
            while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
                if any(process.exitcode for process in processes):  # the others may wait for it forever
                    deadline = min(deadline, time.monotonic() + 2)
                time.sleep(0.01)
            hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
        finally:
            for process in processes:
                process.kill()
                process.join()
        errors = [path.read_text() for path in sorted(Path(folder).glob("error-*"))]
        if hung and not errors:
            raise TimeoutError(f"ranks {hung} of {world_size} did not end within {timeout} s")
        if errors or any(process.exitcode for process in processes):
            codes = [process.exitcode for process in processes]
            raise RuntimeError("\n".join([f"exit codes by rank: {codes}", *errors]))
        return [torch.load(Path(folder) / f"result-{rank}", weights_only=False) for rank in range(world_size)]


def _run(fn: Callable[..., Any], rank: int, world_size: int, folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # a forked process must not use the threads of its parent's OpenMP
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    rank_zero_only.rank = rank  # as Lightning reads it when it is imported under torchrun
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
        )
        result = fn(rank, *args)
        dist.barrier()
        dist.destroy_process_group()
        torch.save(result, folder / f"result-{rank}")
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        raise SystemExit(1) from None
