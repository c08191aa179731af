"""A small catalogue with pictures, and what a folder of embeddings holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROWS = 22
BROKEN = 13  # the row whose picture cannot be read


def write_catalogue(folder: Path, rows: int = ROWS) -> Path:
    """A JSON-lines file of texts and pictures; every third row has a picture, one of them is broken."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    lines = []
    for row in range(rows):
        name = f"{row}.png" if row % 3 == 1 else ""
        if name:
            pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        lines.append({"id": f"sku-{row}", "text": f"thing number {row}", "image": name})
    if rows > BROKEN:
        (folder / f"{BROKEN}.png").write_bytes(b"not a picture")
    path = folder / "catalogue.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


OPTIONS: dict[str, Any] = {
    "text": "text",
    "image": "image",
    "id": "id",
    "batch_size": 4,
    "shard_size": 8,
    "num_workers": 0,
    "accelerator": "cpu",
    "enable_progress_bar": False,
}
