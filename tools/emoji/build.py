"""Builds the embedded benchmark from four npm packages; the same bytes each time.

    python -m tools.emoji.build --cache DIR [--out DIR]

``--cache`` holds the package files (``npm pack`` fetches those that are missing); ``--out`` is the
benchmark's folder in the package unless given. ``blind.json`` there holds the measured blind scores, which
``subsets.json`` takes over.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .composed import SceneSubsets
from .rows import EvalRow, TrainRow
from .scenes import Album
from .single import SingleSubsets
from .sources import load
from .split import Split
from .subsets import HERE, write_subsets


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
    write_subsets(out)


def _images(train: Mapping[str, list[TrainRow]], evaluation: Mapping[str, list[EvalRow]]) -> set[str]:
    """The paths of all images that some row names."""
    columns = ("qry_image_path", "pos_image_path", "neg_image_path")
    paths = {row.get(column, "") for rows in train.values() for row in rows for column in columns}
    for row in (row for rows in evaluation.values() for row in rows):
        paths |= {str(row["qry_img_path"]), *row["tgt_img_path"]}
    return paths - {""}


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, compression="zstd", compression_level=19)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build the embedded benchmark.")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the npm package files")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write into")
    arguments = parser.parse_args()
    build(arguments.cache, arguments.out)


if __name__ == "__main__":
    main()
