"""A small snapshot of MMEB's two hub repositories, made of the embedded benchmark by `datasets` itself.

Every config of MMEB is there, under its own name, filled with rows of an emoji subset of the same meta-task.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo, SplitInfo, disable_progress_bars
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

import fanoise_lightning.data
from fanoise_lightning.evaluation.mmeb import CATALOG, CatalogEntry

EMOJI = Path(fanoise_lightning.data.__file__).parent / "emoji"
TRAIN_ROWS, EVAL_ROWS, CANDIDATES = 12, 3, 4
TWO_SHARDS = ("ImageNet_1K", "MSCOCO_i2t", "NIGHTS")  # the other configs have one file per split

Row = dict[str, Any]


def emoji_of(entry: CatalogEntry, part: str) -> str:
    """The emoji subset that stands in for a subset of MMEB: of its meta-task, and often of its modalities."""
    if entry.meta_task == "retrieval":
        kinds = {("T", "I"): "keywords", ("I", "T"): "caption", ("I+T", "I"): "recolour"}
        return kinds.get((entry.query, entry.target), "renderer")
    single = {"classification": "group", "vqa": "kind", "grounding": "crop"}
    return "subgroup" if entry.name == "ImageNet-1K" else single[entry.meta_task]


@cache
def emoji_rows(part: str, subset: str) -> list[Row]:
    return pq.read_table(EMOJI / part / f"{subset}.parquet").slice(0, 240).to_pylist()


def train_rows(entry: CatalogEntry, number: int) -> list[Row]:
    """Twelve rows, others for every subset, with paths as MMEB has them: ``images/<config>/...``."""
    start = (number * TRAIN_ROWS) % 228
    rows = emoji_rows("train", emoji_of(entry, "train"))[start : start + TRAIN_ROWS]
    prefix = f"images/{entry.train_name}/"
    return [
        {key: prefix + value if key.endswith("path") and value else value for key, value in row.items()}
        for row in rows
    ]


def eval_rows(entry: CatalogEntry, number: int) -> list[Row]:
    """Three queries with four candidates each, and paths ``<config>/...``."""
    start = (number * EVAL_ROWS) % 228
    rows = emoji_rows("eval", emoji_of(entry, "eval"))[start : start + EVAL_ROWS]

    def moved(path: str) -> str:
        return f"{entry.name}/{path}" if path else ""

    return [
        {
            "qry_text": row["qry_text"],
            "qry_img_path": moved(row["qry_img_path"]),
            "tgt_text": row["tgt_text"][:CANDIDATES],
            "tgt_img_path": [moved(path) for path in row["tgt_img_path"][:CANDIDATES]],
        }
        for row in rows
    ]


def image_paths(rows: Iterable[Row]) -> set[str]:
    values = [value for row in rows for key, value in row.items() if key.endswith("path")]
    return {path for value in values for path in ([value] if isinstance(value, str) else value) if path}


def write_config(repository: Path, config: str, splits: dict[str, list[Row]], shards: int = 1) -> None:
    """Write parquet shards and the card's entries, as `Dataset.push_to_hub` names and writes them."""
    infos = DatasetInfo(splits={})
    for split, rows in splits.items():
        table = Dataset.from_list(rows)
        for shard in range(shards):
            file = repository / config / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            table.shard(shards, shard, contiguous=True).to_parquet(file)
        infos.features = table.features
        infos.splits[split] = SplitInfo(split, num_examples=len(rows))
    readme = repository / "README.md"
    card = DatasetCard.load(readme) if readme.exists() else DatasetCard("---\nlicense: other\n---\n")
    data: DatasetCardData = card.data
    DatasetInfosDict({config: infos}).to_dataset_card_data(data)
    files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
    MetadataConfigs({config: {"data_files": files}}).to_dataset_card_data(data)
    card.save(readme)


def make_snapshot(root: Path) -> Path:
    """Write ``MMEB-train/`` and ``MMEB-eval/`` under `root`, about 3 MB."""
    disable_progress_bars()
    train, evaluation = root / "MMEB-train", root / "MMEB-eval"
    (train / "images_zip").mkdir(parents=True)
    evaluation.mkdir()
    with (
        zipfile.ZipFile(EMOJI / "images.zip") as source,
        zipfile.ZipFile(evaluation / "images.zip", "w") as images,
    ):
        for number, entry in enumerate(CATALOG.values()):
            rows = eval_rows(entry, number)
            write_config(evaluation, entry.name, {"test": rows})
            for path in sorted(image_paths(rows)):
                images.writestr(path, source.read(path.split("/", 1)[1]))
            if entry.train_name is None:
                continue
            rows = train_rows(entry, number)
            diverse = [{**row, "qry": f"{row['qry']} Please."} for row in rows]
            splits = {"original": rows, "diverse_instruction": diverse}
            write_config(train, entry.train_name, splits, 2 if entry.train_name in TWO_SHARDS else 1)
            with zipfile.ZipFile(train / "images_zip" / f"{entry.train_name}.zip", "w") as archive:
                for path in sorted(image_paths(rows)):
                    member = path.removeprefix("images/")
                    archive.writestr(member, source.read(member.split("/", 1)[1]))
    return root
