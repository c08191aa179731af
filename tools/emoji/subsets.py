"""Writes ``subsets.json`` of the embedded benchmark from its rows and images: kinds, tasks and floors.

    python -m tools.emoji.subsets [FOLDER]

``blind.json`` in the package holds the measured blind scores, which are taken over.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from .rows import EvalRow

Array = NDArray[np.int32]
Pixels = Callable[[str], Array]
HERE = Path(__file__).parents[2] / "fanoise_lightning" / "data" / "emoji"
# name -> meta-task; in-distribution ones first
META_TASKS = {
    "subgroup": "classification",
    "group": "classification",
    "kind": "vqa",
    "person": "vqa",
    "skin_tone": "vqa",
    "ground": "vqa",
    "caption": "retrieval",
    "keywords": "retrieval",
    "renderer": "retrieval",
    "recolour": "retrieval",
    "crop": "grounding",
}
# A "_fluent" subset asks what the in-distribution one asks, of another renderer's images: they share a task.
# "_unseen" asks it of other concepts. With it, OOD would have two subsets of a task and count it twice.
FLUENT, UNSEEN = "_fluent", "_unseen"


def write_subsets(folder: Path) -> None:
    """Writes ``subsets.json`` into the folder that holds ``eval/`` and ``images.zip``."""
    (folder / "subsets.json").write_text(json.dumps(subsets(folder), indent=2) + "\n", encoding="utf-8")


def subsets(folder: Path) -> list[dict[str, Any]]:
    """The entries of ``subsets.json``, in the order of the scoreboard."""
    blind = json.loads((HERE / "blind.json").read_text(encoding="utf-8"))
    evaluation = {path.stem: pq.read_table(path).to_pylist() for path in (folder / "eval").glob("*.parquet")}
    entries = []
    with zipfile.ZipFile(folder / "images.zip") as archive:
        pixels = _reader(archive)
        for name in sorted(evaluation, key=_order):
            base, suffix = _parts(name)
            entry = {
                "name": name,
                "meta_task": META_TASKS[base],
                "distribution": "OOD" if suffix else "IND",
            }
            if base + FLUENT in evaluation and suffix != UNSEEN:
                entry["task"] = base
            known = {"blind": blind[name]} if name in blind else {}
            entries.append(entry | {"floors": floors(evaluation[name], pixels) | known})
    return entries


def floors(rows: Sequence[EvalRow], pixels: Pixels) -> dict[str, float]:
    """Precision@1 (0 to 1) of what understands nothing.

    ``chance`` draws a candidate, ``constant`` always gives the one answer that is right most often. If all
    queries and candidates have images, ``copy`` takes the candidate whose pixels are nearest to the query's;
    a candidate that is the query's own image is the nearest.
    """
    truths = Counter((row["tgt_text"][0], row["tgt_img_path"][0]) for row in rows)
    found = {
        "chance": fmean(1 / len(row["tgt_text"]) for row in rows),
        "constant": max(truths.values()) / len(rows),
    }
    if all(row["qry_img_path"] and all(row["tgt_img_path"]) for row in rows):
        found["copy"] = fmean(_copy(row, pixels) for row in rows)
    return {name: round(share, 4) for name, share in found.items()}


def _copy(row: EvalRow, pixels: Pixels) -> float:
    """1 if the ground truth is nearest to the query by squared differences of pixels; a tie is a share."""
    candidates = np.stack([pixels(path) for path in row["tgt_img_path"]])  # (C, H, W, 3)
    query = pixels(str(row["qry_img_path"]))
    height, width = candidates.shape[1:3]
    # a scene is twice as large as its crops: sums of blocks, in integers, so that nothing is rounded
    factor = len(query) // height
    blocks = query.reshape(height, factor, width, factor, 3).sum(axis=(1, 3), dtype=np.int32)
    distances = np.square(factor**2 * candidates - blocks).sum(axis=(1, 2, 3), dtype=np.int64)
    return float((distances[0] == distances.min()) / (distances == distances.min()).sum())


def _reader(archive: zipfile.ZipFile) -> Pixels:
    return cache(lambda path: _decode(archive.read(path)))


def _decode(file: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=np.int32)


def _parts(name: str) -> tuple[str, str]:
    suffix = next((suffix for suffix in (FLUENT, UNSEEN) if name.endswith(suffix)), "")
    return name.removesuffix(suffix), suffix


def _order(name: str) -> tuple[bool, int, str]:
    base, suffix = _parts(name)
    return bool(suffix), list(META_TASKS).index(base), suffix


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write subsets.json of the embedded benchmark.")
    parser.add_argument("folder", type=Path, nargs="?", default=HERE, help="folder of eval/ and images.zip")
    write_subsets(parser.parse_args().folder)


if __name__ == "__main__":
    main()
