"""Read the ONNX files of exported folders with onnxruntime, and text and pictures as this package does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fanoise_lightning.encoders.onnx_towers import OnnxTowers
from fanoise_lightning.module import ContrastiveModule
from fanoise_lightning.sample import Sample


def main(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    import onnxruntime

    return {"version": onnxruntime.__version__, "results": [read(job) for job in jobs]}


def read(job: dict[str, Any]) -> Any:
    try:
        module = ContrastiveModule(OnnxTowers(job["folder"]))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return [embed(module, job, batch) for batch in job["batches"]]


def embed(module: ContrastiveModule, job: dict[str, Any], batch: list[int]) -> Any:
    rows = [job["rows"][number] for number in batch]
    samples = [
        Sample(row["prompt"] + row["text"], [Path(job["pictures"]) / name for name in row["images"]] or None)
        for row in rows
    ]
    try:
        return module.encode(samples).tolist()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
