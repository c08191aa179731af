"""Runs a study: one process a run, some at a time on this machine, or each as a job of a cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fanoise_lightning._checks import check_at_least
from fanoise_lightning.callbacks._files import write_json
from fanoise_lightning.study.plan import Run, Study
from fanoise_lightning.study.records import FAILED, FINISHED, PLAN
from fanoise_lightning.study.resolve import fingerprints
from fanoise_lightning.study.run import LOG, is_finished
from fanoise_lightning.study.worker import Worker

__all__ = ["run_study"]

_BAR = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def run_study(
    study: Study, folder: str | Path, workers: int | None = None, cluster: Mapping[str, Any] | None = None
) -> dict[Path, str]:
    """Run what is missing of a study.

    Every run has a folder, ``[regime/]arm/seed-N``, with what ``fanoise fit`` writes, its output in
    ``log.txt``, and ``finished.json`` at its end. Finished runs are kept; failed ones are run again.

    Args:
        study: what to run.
        folder: where the runs are kept.
        workers: how many runs at a time on this machine; by default one per GPU, or one.
        cluster: submit each run as a job through submitit, with these parameters, such as
            ``{"cluster": "slurm", "slurm_partition": "gpu", "timeout_min": 60}``.

    Returns:
        The folders of the runs that failed, with what went wrong. The others are not affected.

    Raises:
        ValueError: if an arm cannot be run, see :func:`~fanoise_lightning.study.resolve.fingerprints`; if
            ``workers`` is below 1; if a run's folder holds a finished run of another configuration, or files
            that are not a study's.
        ImportError: if ``cluster`` is given and submitit is not installed.
    """
    folder = Path(folder).expanduser()
    if workers is not None:
        check_at_least("workers", workers, 1)
    configs = fingerprints(study)
    runs = list(study.runs())
    todo = [folder / run.folder for run in runs if _prepare(run, folder, configs[run.regime, run.arm])]
    with Progress(*_BAR) as progress:
        bar = progress.add_task("runs", total=len(runs), completed=len(runs) - len(todo))
        results = _on_cluster(todo, folder, cluster) if cluster else _here(todo, workers)
        failed = {}
        for path, error in results:
            progress.advance(bar)
            if error:
                failed[path] = error
                progress.console.print(f"failed: {path}: {error}", style="red", markup=False)
    return failed


def _prepare(run: Run, folder: Path, config: str) -> bool:
    """Write the plan of a run; whether it is still to be run."""
    path = folder / run.folder
    logger = {"save_dir": str(path), "name": "", "version": ""}
    options = [
        "fit",
        "--trainer.enable_progress_bar=false",
        *run.options,
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        *(f"--trainer.logger.{name}={value}" for name, value in logger.items()),
    ]
    if is_finished(path):
        known = json.loads((path / PLAN).read_text(encoding="utf-8")).get("config")
        if known != config:
            raise ValueError(
                f"{path} holds a finished run of another configuration: choose another folder, or remove "
                f"it to run {run} again"
            )
        return False
    files = [] if not path.exists() else [file for file in path.iterdir() if file.suffix != ".tmp"]
    if files and not (path / PLAN).exists():
        raise ValueError(f"{path} holds files that are not a study's, and {run} would replace them")
    plan = {"regime": run.regime, "arm": run.arm, "seed": run.seed, "config": config, "options": options}
    write_json(path / PLAN, plan, indent=1)
    return True


def _here(folders: Sequence[Path], workers: int | None) -> Iterator[tuple[Path, str]]:
    """Run some at a time; yields each folder with its error, "" for none, as they end."""
    gpus = _gpus()
    workers = max(len(gpus), 1) if workers is None else workers
    pool, idle = [], SimpleQueue[Worker]()
    for number in range(workers):
        threads = str(max((os.cpu_count() or 1) // workers, 1))
        own_gpu = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus and workers > 1 else {}
        pool.append(Worker({"OMP_NUM_THREADS": threads, **os.environ, **own_gpu}))
        idle.put(pool[-1])

    def work(folder: Path) -> str:
        worker = idle.get()
        try:
            return _train(folder, worker)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(workers) as threads_:
        jobs = {threads_.submit(work, folder): folder for folder in folders}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        finally:  # an interrupt leaves no process behind
            threads_.shutdown(wait=False, cancel_futures=True)
            for worker in pool:
                worker.stop()


def _gpus() -> list[str]:
    """What names each GPU in CUDA_VISIBLE_DEVICES, of those that this process sees."""
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def _on_cluster(
    folders: Sequence[Path], folder: Path, parameters: Mapping[str, Any]
) -> Iterable[tuple[Path, str]]:
    try:
        import submitit
    except ImportError as error:
        raise ImportError("a study on a cluster needs submitit: pip install submitit") from error
    parameters = dict(parameters)
    executor = submitit.AutoExecutor(folder / "jobs", cluster=parameters.pop("cluster", None))
    executor.update_parameters(**parameters)
    with executor.batch():
        jobs = {executor.submit(_train, path): path for path in folders}
    for job in submitit.helpers.as_completed(list(jobs)):
        failure = job.exception()
        yield jobs[job], str(failure) if failure else job.result()


def _train(folder: Path, worker: Worker | None = None) -> str:
    """Run one folder in a process of its own; what went wrong, "" for nothing."""
    (folder / FAILED).unlink(missing_ok=True)
    worker = worker or Worker(os.environ)
    code = worker.run(folder)
    if (folder / FINISHED).exists():
        return ""
    if worker.stopped:  # like a run that was killed: it did not fail
        (folder / FAILED).unlink(missing_ok=True)
        return "interrupted"
    if not (folder / FAILED).exists():  # killed, or dead before it could say why
        error = f"exit code {code}, see {LOG}"
        with suppress(OSError):  # the disk may be full
            write_json(folder / FAILED, {"error": error})
        return error
    return str(json.loads((folder / FAILED).read_text(encoding="utf-8"))["error"])
