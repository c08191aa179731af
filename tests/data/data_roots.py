"""Small roots in MMEB's layout, and a module that writes down what it is fed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from fanoise_lightning.sample import Sample


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """In place of an encoder's: the number in each text, and the grey of each image (-1 for none)."""
    digits = ["".join(filter(str.isdigit, sample.text)) for sample in samples]
    greys = [-1 if sample.image is None else sample.image.getpixel((0, 0))[0] for sample in samples]
    return {"number": torch.tensor([int(number or -1) for number in digits]), "grey": torch.tensor(greys)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_image(path: Path, grey: int = 128) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(path)
    return path


def zip_folder(folder: Path) -> Path:
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return target


def train_row(number: int, query_image: str = "", target_image: str = "") -> dict[str, Any]:
    return {
        "qry": f"<|image_1|> q{number}" if query_image else f"q{number}",
        "qry_image_path": query_image,
        "pos_text": f"t{number}",
        "pos_image_path": target_image,
    }


def eval_row(number: int, candidates: list[int], query_image: str = "") -> dict[str, Any]:
    return {
        "qry_text": f"<|image_1|> q{number}" if query_image else f"q{number}",
        "qry_img_path": query_image,
        "tgt_text": [f"t{candidate}" for candidate in candidates],
        "tgt_img_path": [""] * len(candidates),
    }


def make_root(root: Path, suffix: str = ".jsonl", sizes: tuple[int, ...] = (24, 12)) -> Path:
    """Training subsets a, b, ... with rows numbered 1000, 2000, ..., and two evaluation subsets of six
    queries.

    The first training subset and the first evaluation subset have images on the query side.
    """
    for grey in range(6):
        write_image(root / "images" / f"{grey}.png", 40 * grey)
    for letter, size, base in zip("abcdefgh", sizes, range(1000, 9000, 1000)):
        make_image = (lambda row: f"{row % 6}.png") if letter == "a" else (lambda row: "")
        rows = [train_row(base + row, make_image(row)) for row in range(size)]
        write_rows(root / "train" / f"{letter}{suffix}", rows)
    rows = [eval_row(row, [row, (row + 1) % 6, (row + 2) % 6], f"{row}.png") for row in range(6)]
    write_rows(root / "eval" / f"looking{suffix}", rows)
    write_rows(root / "eval" / f"reading{suffix}", [eval_row(row, [row, (row + 1) % 6]) for row in range(6)])
    subsets = [
        {"name": "reading", "meta_task": "retrieval", "distribution": "OOD"},
        {"name": "looking", "meta_task": "classification", "distribution": "IND", "floors": {"chance": 0.3}},
    ]
    (root / "subsets.json").write_text(json.dumps(subsets), encoding="utf-8")
    return root


class Recorder(LightningModule):
    """Writes down the numbers of each batch; its one weight has no influence on anything."""

    collate = staticmethod(collate)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[list[int]] = []
        self.evaluated: list[tuple[int, list[int]]] = []
        self.keys: set[str] = set()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.keys |= batch.keys()
        self.trained.append(batch["query"]["number"].tolist())
        return self.weight**2

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.keys |= batch.keys()
        self.evaluated.append((dataloader_idx, batch["index"].tolist()))

    test_step = validation_step
    predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(default_root_dir=folder, accelerator="cpu", **{"devices": 1, **quiet, **options})
