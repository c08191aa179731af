"""``fanoise study STUDY.YAML --folder RUNS``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from fanoise_lightning._log import report
from fanoise_lightning._user_errors import Parser
from fanoise_lightning.study.launch import run_study
from fanoise_lightning.study.plan import Study

__all__ = ["main"]


def main(args: Sequence[str]) -> None:
    """The ``fanoise study`` command.

    Args:
        args: the command line after the command's name.

    Raises:
        SystemExit: if a run failed, with how many.
        ValueError: if the study cannot be run.
    """
    parser = Parser("fanoise study", description="Run every arm of a study under every seed.")
    parser.add_argument("study", type=str, help="The study, a YAML file.")
    parser.add_argument(
        "--folder", type=str, required=True, help="Where the runs are kept; a study resumes there."
    )
    parser.add_argument(
        "--workers", type=int | None, default=None, help="Runs at a time; by default one per GPU."
    )
    parser.add_argument(
        "--cluster", type=dict | None, default=None, help="Parameters of submitit, to run each run as a job."
    )
    given = parser.parse_args(args)
    try:
        study = Study.load(given.study)
        failed = run_study(study, given.folder, given.workers, given.cluster)
    except KeyboardInterrupt:
        print("interrupted: run the study again to resume it", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    if failed:
        raise SystemExit(
            f"{len(failed)} of {len(list(study.runs()))} runs failed; run the study again to retry them"
        )
    report(f"wrote {len(list(study.runs()))} runs to {given.folder}")
    if study.baseline is not None:
        for regime in study.regimes or [""]:
            where = f"{given.folder}/{regime}".rstrip("/")
            print(f"fanoise compare {where!r} --baseline {study.baseline!r}")
