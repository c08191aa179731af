"""Read exported folders with open_clip."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F


def main(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    import open_clip

    return {"version": open_clip.__version__, "results": [read(job) for job in jobs]}


@torch.inference_mode()
def read(job: dict[str, Any]) -> Any:
    import open_clip

    name = f"local-dir:{job['folder']}"
    try:
        model, _, transform = open_clip.create_model_and_transforms(name)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return [embed(model.eval(), transform, tokenizer, job, batch) for batch in job["batches"]]


def embed(model: Any, transform: Any, tokenizer: Any, job: dict[str, Any], batch: list[int]) -> Any:
    vectors = []
    try:
        for row in (job["rows"][number] for number in batch):
            parts = []
            if text := row["prompt"] + row["text"]:
                parts.append(model.encode_text(tokenizer([text]), normalize=True))
            for file in row["images"]:
                image = transform(Image.open(Path(job["pictures"]) / file))
                parts.append(model.encode_image(image[None], normalize=True))
            vectors.append(F.normalize(torch.stack(parts).sum(0), dim=1)[0].tolist())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return vectors


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
