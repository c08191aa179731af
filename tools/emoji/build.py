"""Builds the embedded benchmark from four npm packages; the same bytes each time.

    python -m tools.emoji.build --cache DIR [--out DIR]

``--cache`` holds the package files (``npm pack`` fetches those that are missing); ``--out`` is the
benchmark's folder in the package unless given. ``blind.json`` there holds the measured blind scores, which
``subsets.json`` takes over.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .composed import SceneSubsets
from .rows import EvalRow, TrainRow, floors
from .scenes import Album
from .single import SingleSubsets
from .sources import load
from .split import Split

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
OUT_OF_DISTRIBUTION = ("_fluent", "_unseen")


def build(cache: Path, out: Path) -> None:
    """Writes ``images.zip``, ``train/``, ``eval/`` and ``subsets.json`` into ``out``."""
    concepts, images = load(cache)
    split, album = Split(concepts), Album(images)
    single, scenes = SingleSubsets(split, album), SceneSubsets(split, album)
    train = single.train() | scenes.train()
    evaluation = single.evaluation() | scenes.evaluation()
    for folder, subsets in (("train", train), ("eval", evaluation)):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for old in (out / folder).glob("*.parquet"):
            old.unlink()
        for name, rows in subsets.items():
            _write_rows(out / folder / f"{name}.parquet", rows)
    album.write(out / "images.zip", _images(train, evaluation))
    text = json.dumps(_subsets(evaluation), indent=2) + "\n"
    (out / "subsets.json").write_text(text, encoding="utf-8")


def _images(train: Mapping[str, list[TrainRow]], evaluation: Mapping[str, list[EvalRow]]) -> set[str]:
    """The paths of all images that some row names."""
    columns = ("qry_image_path", "pos_image_path", "neg_image_path")
    paths = {row.get(column, "") for rows in train.values() for row in rows for column in columns}
    for row in (row for rows in evaluation.values() for row in rows):
        paths |= {str(row["qry_img_path"]), *row["tgt_img_path"]}
    return paths - {""}


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, compression="zstd", compression_level=19)


def _subsets(evaluation: Mapping[str, Sequence[EvalRow]]) -> list[dict[str, Any]]:
    blind_file = HERE / "blind.json"
    blind = json.loads(blind_file.read_text(encoding="utf-8")) if blind_file.exists() else {}
    subsets = []
    for name, rows in evaluation.items():
        base, _, suffix = name.rpartition("_")
        shifted = f"_{suffix}" in OUT_OF_DISTRIBUTION
        subset_floors = floors(rows) | ({"blind": blind[name]} if name in blind else {})
        subsets.append(
            {
                "name": name,
                "meta_task": META_TASKS[base if shifted else name],
                "distribution": "OOD" if shifted else "IND",
                "floors": subset_floors,
            }
        )
    order = list(META_TASKS.values())
    return sorted(subsets, key=lambda s: (s["distribution"], order.index(s["meta_task"])))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the embedded benchmark.")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the npm package files")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write into")
    arguments = parser.parse_args()
    build(arguments.cache, arguments.out)


if __name__ == "__main__":
    main()
