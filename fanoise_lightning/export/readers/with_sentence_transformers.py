"""Read exported folders with sentence-transformers."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image


def main(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    import sentence_transformers

    return {"version": sentence_transformers.__version__, "results": [read(job) for job in jobs]}


def read(job: dict[str, Any]) -> Any:
    from sentence_transformers import SentenceTransformer

    try:
        for name in job.get("imports", ()):  # a model type that is not part of transformers
            sys.path.append(job["path"])
            import_module(name)
        model = SentenceTransformer(job["folder"], device="cpu", model_kwargs={"dtype": "float32"})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    os.chdir(job["pictures"])  # one of the texts is the name of a file that is there
    return [embed(model, job, batch) for batch in job["batches"]]


def embed(model: Any, job: dict[str, Any], batch: list[int]) -> Any:
    rows = [job["rows"][number] for number in batch]
    prompt = rows[0]["prompt"] or None
    try:
        found = model.encode([as_input(row, job) for row in rows], prompt=prompt)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return found.tolist()


def as_input(row: dict[str, Any], job: dict[str, Any]) -> Any:
    images: list[Any] = [Image.open(Path(job["pictures"]) / name) for name in row["images"]]
    if edge := job.get("image_size"):
        images = [image.resize((edge, edge), Image.Resampling.BICUBIC) for image in images]
    image = images[0] if len(images) == 1 else images
    if not images:
        return row["text"]
    return {"text": row["text"], "image": image} if row["text"] else {"image": image}


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
