"""The beginning and the end of a run of ``embed``: whose folder this is, and the manifest."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from fanoise_lightning._log import report
from fanoise_lightning.callbacks._files import write_json
from fanoise_lightning.search.folder import MANIFEST, UNFINISHED
from fanoise_lightning.search.shard_writer import Shards

__all__ = ["Finish", "alone", "begin", "is_complete", "tidy"]

LOCK = "embed.lock"
_LEFT_BY_KILLED = re.compile(r"(\d{5,}\.(safetensors|parquet)|(manifest|unfinished)\.json)\.\d+\.tmp")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other run of ``embed`` on this machine works in the folder meanwhile; the processes of one run do.

    The system drops the lock of a killed run.

    Raises:
        OSError: if another run does, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"`{folder}` is a file: name a folder") from None
    if getattr(rank_zero_only, "rank", 0):  # of the run whose first process has the lock
        yield
        return
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            f"another `fanoise embed` is writing to `{folder}`: wait for its end, or name another folder"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # some systems keep open files
            (folder / LOCK).unlink()
        lock.release()


def begin(shards: Shards, header: dict[str, Any]) -> None:
    """Mark a folder as that of this run.

    Args:
        shards: what will be in it.
        header: the manifest, but for what is only known at the end. A run continues one with the same
            ``made_with``.

    Raises:
        ValueError: if the folder is another run's, or has other files in it.
        OSError: if it cannot be written to, or the disk has too little space.
    """
    folder = shards.folder
    there = _read_header(folder)
    written = sorted(folder.glob("*.safetensors"))
    if there is not None and written:
        _refuse_another_run(folder, there, header)
        done = sum(shards.finished(number) is not None for number in range(len(shards)))
        report(f"continuing `{folder}`: {done} of {len(shards)} shards are there")
    elif there is None and folder.exists():
        names = sorted(path.name for path in folder.iterdir() if not _is_left_over(path))
        others = [name for name in names if name != LOCK]
        if others:
            raise ValueError(
                f"`{folder}` holds `{others[0]}`, which is not ours: name a new or an empty folder"
            )
    if not written:  # a manifest of shards that were removed would seem to be of the new ones
        rank_zero_only((folder / MANIFEST).unlink)(missing_ok=True)
    if not (folder / MANIFEST).exists():
        rank_zero_only(write_json)(folder / UNFINISHED, header, indent=1)
    if not written:
        _check_space(
            folder, len(shards.rows) * header["dimension"] * (2 if header["dtype"] == "float16" else 4)
        )


def is_complete(shards: Shards) -> bool:
    """Whether the manifest is there, and all that it lists."""
    finished = (shards.finished(number) is not None for number in range(len(shards)))
    return (shards.folder / MANIFEST).exists() and all(finished)


def tidy(folder: Path) -> None:
    """Remove what killed runs left in a folder that is complete."""
    for file in (folder / UNFINISHED, *filter(_is_left_over, folder.glob("*.tmp"))):
        file.unlink(missing_ok=True)


def _is_left_over(file: Path) -> bool:
    """Whether a killed run left a file half-written; other ``.tmp`` files are not ours."""
    return _LEFT_BY_KILLED.fullmatch(file.name) is not None


class Finish(Callback):
    """Write the manifest once every process has written its shards, and say what was written where."""

    def __init__(self, shards: Shards, header: dict[str, Any]) -> None:
        self.shards, self.header = shards, header

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # not `on_predict_end`, which does not come if nothing was left to embed
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._write()
        trainer.strategy.barrier()

    def _write(self) -> None:
        folder = self.shards.folder
        found: list[dict[str, Any]] = []
        skipped: list[dict[str, str]] = list(self.header["skipped"])
        for number in range(len(self.shards)):
            name, notes = self.shards.name(number), self.shards.finished(number)
            if notes is None:
                raise RuntimeError(
                    f"shard `{name}` of `{folder}` has gone: run the same `fanoise embed` again"
                )
            found.append({"name": name, "rows": notes["rows"]})
            skipped += notes["skipped"]
        rows = sum(shard["rows"] for shard in found)
        if not rows:
            raise ValueError(
                f"none of the {len(skipped)} rows could be embedded (the first, {skipped[0]['id']!r}: "
                f"{skipped[0]['reason']}); remove `{folder}` and start again"
            )
        manifest = {**self.header, "rows": rows, "shards": found, "skipped": skipped}
        write_json(folder / MANIFEST, manifest, indent=1)
        tidy(folder)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        shape = f"{rows:,} x {manifest['dimension']} numbers of {manifest['dtype']}"
        left = f"; {len(skipped):,} rows skipped, see `{folder / MANIFEST}`" if skipped else ""
        shards = f"{len(found)} shard{'s' * (len(found) > 1)}"
        report(f"wrote {shape} to `{folder}` ({shards}, {size:,.1f} MB){left}")


def _read_header(folder: Path) -> dict[str, Any] | None:
    """What a folder says about the run that wrote it; ``None`` if it says nothing."""
    for name in (MANIFEST, UNFINISHED):
        if (file := folder / name).is_file():
            try:
                return dict(json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"`{file}` is damaged ({error}): remove the folder, or name another"
                ) from error
    return None


def _refuse_another_run(folder: Path, there: dict[str, Any], header: dict[str, Any]) -> None:
    theirs = there.get("made_with") or {}
    for name, value in header["made_with"].items():
        if (other := theirs.get(name)) == value:
            continue
        what = f"`{folder}` was begun with another `{name}`: {other!r}, now {value!r}"
        if name == "source":
            then, now = ((part.get("source"), part.get("source_rows")) for part in (there, header))
            if then[0] == now[0]:
                what = f"`{now[0]}` has changed since `{folder}` was begun: {then[1]} rows then, {now[1]} now"
            else:
                what = f"`{folder}` was begun with another `source`: {then[0]!r}, now {now[0]!r}"
        raise ValueError(f"{what}; continue it as it was begun, name a new folder, or remove this one")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"the disk of `{folder}` has {free / 1e6:,.0f} MB left, and the embeddings take "
            f"{needed / 1e6:,.0f} MB: free some space, or name a folder on another disk"
        )
