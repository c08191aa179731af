"""Folders of embeddings as ``fanoise embed`` writes them, of any numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from fanoise_lightning.search.folder import FORMAT, MANIFEST, write_shard


def write_folder(
    path: Path,
    embeddings: Tensor,
    shards: Sequence[int],
    ids: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    images: Sequence[str] | None = None,
    **manifest: Any,
) -> Path:
    """Write embeddings (N, D) in shards of the given numbers of rows; `manifest` replaces parts of it."""
    path.mkdir(parents=True, exist_ok=True)
    n = len(embeddings)
    rows = pa.table(
        {
            "id": ids or [f"item-{i}" for i in range(n)],
            "text": texts or [f"text {i}" for i in range(n)],
            "image": images or [""] * n,
        }
    )
    start = 0
    for number, count in enumerate(shards):
        write_shard(path, f"{number:05d}", embeddings[start : start + count], rows.slice(start, count), {})
        start += count
    assert start == n
    written = {
        "format": FORMAT,
        "model": {"fingerprint": "f" * 32, "description": {}, "checkpoint": None},
        "dimension": embeddings.shape[1],
        "dtype": str(embeddings.dtype).removeprefix("torch."),
        "normalized": True,
        "rows": n,
        "source": "items.jsonl",
        "image_root": None,
        "shards": [{"name": f"{number:05d}", "rows": count} for number, count in enumerate(shards)],
        "skipped": [],
    }
    (path / MANIFEST).write_text(json.dumps({**written, **manifest}))
    return path


def unit(rows: int, dimension: int, seed: int = 0) -> Tensor:
    """Random unit vectors."""
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dimension, generator=random), dim=1)
