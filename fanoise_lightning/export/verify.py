"""Exported folders are opened by other libraries, in fresh processes, and compared with the encoder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning._log import report
from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.export.probes import Probe, draw_pictures, probes
from fanoise_lightning.export.written import READERS, Written
from fanoise_lightning.sample import Sample
from fanoise_lightning.training.embedding import eval_mode

__all__ = ["BAR", "Check", "embed_rows", "rows_of", "verify"]

BAR = 1e-5
"""The largest difference of any number of two unit vectors at which they count as the same."""

TIMEOUT = 3600
"""Seconds that a library has to read a folder; a large model embeds on the CPU."""

_SCRIPTS = Path(__file__).with_name("readers")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Check:
    """What a folder has to give.

    Args:
        folder: the folder.
        written: its facts.
        rows: n rows.
        vectors: (n, D), their unit vectors.
    """

    folder: Path
    written: Written
    rows: list[Probe]
    vectors: Tensor


def rows_of(encoder: Encoder, written: Written) -> list[Probe]:
    """The rows that a folder is compared on: those that are not too long for the encoder."""
    long_text = "a cat and a dog, " * max(20, (written.reading["max_text_length"] or 0) // 4)
    rows = probes(written.several_images, written.special_token, long_text)
    with tempfile.TemporaryDirectory() as pictures:
        draw_pictures(Path(pictures))
        return [row for row in rows if _is_taken(encoder, row.sample(Path(pictures)))]


def _is_taken(encoder: Encoder, sample: Sample) -> bool:
    try:
        encoder.collate([sample])
    except ValueError:
        return False
    return True


@torch.inference_mode()
def embed_rows(encoder: Encoder, rows: Sequence[Probe]) -> Tensor:
    """The unit vectors (n, D) of an encoder on the CPU, in eval mode."""
    with tempfile.TemporaryDirectory() as pictures, eval_mode(encoder):
        draw_pictures(Path(pictures))
        # one by one: a row does not depend on its batch
        vectors = [encoder(**encoder.collate([row.sample(Path(pictures))])) for row in rows]
    return F.normalize(torch.cat(vectors).float(), dim=1)


def verify(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Open folders with every library that they are for, one process a library.

    Returns:
        For each folder a dictionary by library: its version and ``status``, the largest difference for each
        kind of row, and what it reads differently; or ``why`` it is ``"failed"`` or ``"unverified"``.

    Raises:
        RuntimeError: if the process of a library ends without results, or takes too long.
    """
    receipts: list[dict[str, Any]] = [{} for _ in checks]
    for reader, package in READERS.items():
        numbers = [number for number, check in enumerate(checks) if reader in check.written.readers]
        if not numbers:
            continue
        if importlib.util.find_spec(package) is None:
            for number in numbers:
                receipts[number][reader] = {"status": "unverified", "why": f"{reader} is not installed"}
            continue
        report(f"{reader} reads what was written, on the CPU ...")
        found = _read(reader, package, [checks[number] for number in numbers])
        for number, result in zip(numbers, found["results"], strict=True):
            receipt = _compare(reader, checks[number], result)
            receipts[number][reader] = {**receipt, "version": found["version"]}
    return receipts


def _batches(reader: str, check: Check) -> list[list[int]]:
    """The rows one by one; then, together, those that can be embedded together."""
    cannot, several = check.written.cannot.get(reader, {}), check.written.several_images
    alone = [[number] for number in range(len(check.rows))]
    together = [n for n, row in enumerate(check.rows) if row.kind not in cannot and not row.prompt]
    # of two towers, sentence-transformers runs one a batch; with transformers, a maximum length is one of the
    # whole batch, and would cut the pictures too
    towers = reader == "sentence-transformers" and not several
    if towers or (reader == "transformers" and several and check.written.reading["max_text_length"]):
        pictures = [n for n in together if check.rows[n].images]
        return [*alone, *filter(None, [[n for n in together if n not in pictures], pictures])]
    return [*alone, together]


def _compare(reader: str, check: Check, results: Any) -> dict[str, Any]:
    """The receipt of a folder from what a library read."""
    if isinstance(results, str):
        return {"status": "failed", "why": f"it cannot open the folder ({results[:300]})"}
    cannot = check.written.cannot.get(reader, {})
    rotation = check.written.rotation if reader == "sentence-transformers" else None
    vectors = check.vectors if rotation is None else check.vectors @ rotation
    rows: dict[str, float] = {}
    limits: dict[str, str] = {}
    for batch, result in zip(_batches(reader, check), results, strict=True):
        kind = check.rows[batch[0]].kind if len(batch) == 1 else f"batch of {len(batch)} rows"
        if isinstance(result, str):
            outcome, same = f"refused, {result[:200]}", False
        else:
            difference = _difference(torch.tensor(result), vectors[batch])
            outcome, same = f"differs by {difference:.2g}", difference <= BAR  # NaN does not
        if same:
            rows[kind] = max(difference, rows.get(kind, 0.0))
        elif kind in cannot:
            limits[kind] = f"{cannot[kind]} ({outcome})"
        else:
            why = f"{kind}: {outcome}, and at most {BAR:g} counts as the same"
            return {"status": "failed", "why": why}
    return {"status": "verified", "largest_difference": max(rows.values()), "rows": rows, "cannot": limits}


def _difference(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().max().item() if found.shape == expected.shape else float("inf")


def _read(reader: str, package: str, checks: Sequence[Check]) -> dict[str, Any]:
    """What a library reads in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        draw_pictures(Path(scratch))
        jobs, results = Path(scratch, "jobs.json"), Path(scratch, "results.json")
        listed = [
            {
                "folder": str(check.folder.absolute()),
                "pictures": scratch,
                "path": str(_ROOT),
                "rows": [asdict(row) for row in check.rows],
                "batches": _batches(reader, check),
                **check.written.reading,
            }
            for check in checks
        ]
        jobs.write_text(json.dumps(listed), encoding="utf-8")
        script = str(_SCRIPTS / f"with_{package}.py")
        command = [sys.executable, "-P", script, str(jobs), str(results)]  # -P: not the folder of the script
        try:
            done = subprocess.run(
                command, env=_environment(), capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{reader} took more than {TIMEOUT} s to read the exported folder") from error
        if done.returncode or not results.is_file():
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(
                f"{reader} ended without reading the folder: {said[-1]}. If the library itself is broken, "
                "repair or remove it"
            )
        return json.loads(results.read_text(encoding="utf-8"))


def _environment() -> dict[str, str]:
    """On the CPU and without a network."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **offline, "TOKENIZERS_PARALLELISM": "false"}
