"""Rows per second of `VisionLanguageEncoder` against the plain transformers forward of the same inputs.

    python benchmarks/encoders.py [--rows 16] [--repeats 30] [--model FOLDER_OR_HUB_ID]

Both sides hold the same weights and get the same mixed batch: texts, pictures, texts with one and with
two pictures. The plain side calls the inner model and takes the last position. The sides take turns, so that
both see the same machine; medians, and the median of the ratios. Without a model: a tiny random one of each
family, where whatever the encoder adds weighs most.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor

from fanoise_lightning import Sample
from fanoise_lightning.encoders.loading import load_network
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "encoders"))

from tiny_models import BUILDERS, picture, save_tiny


def mixed(rows: int) -> list[Sample]:
    """One row of each kind after the other."""
    kinds = [
        Sample("a red apple on a table"),
        Sample(image=picture(90, 60, 1)),
        Sample("what is it", picture(60, 90, 2)),
        Sample("the same", (picture(64, 64, 3), picture(30, 50, 4))),
    ]
    return [kinds[row % len(kinds)] for row in range(rows)]


def seconds(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def compare(name: str, model: str, rows: int, repeats: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = VisionLanguageEncoder(model).eval().to(device)
    plain = load_network(model).model.to(device)
    samples = mixed(rows)
    batch = {key: value.to(device) for key, value in encoder.collate(samples).items()}

    def theirs() -> Tensor:
        return plain(**batch, use_cache=False).last_hidden_state[:, -1]

    def ours() -> Tensor:
        return encoder(**batch)

    error = (ours() - theirs()).abs().max().item()
    times = [(seconds(theirs), seconds(ours)) for _ in range(repeats + 3)][3:]
    theirs_s, ours_s = (statistics.median(column) for column in zip(*times))
    ratio = statistics.median(a / b for a, b in times)
    collate_s = statistics.median(seconds(lambda: encoder.collate(samples)["input_ids"]) for _ in range(5))
    print(
        f"{name:12} {rows / theirs_s:12.1f} {rows / ours_s:12.1f} {ratio:7.3f} {rows / collate_s:14.1f} "
        f"{error:12.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--model")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    print("rows/s       transformers         ours   ratio   collating alone   difference")
    if arguments.model:
        compare(Path(arguments.model).name, arguments.model, arguments.rows, arguments.repeats)
        return
    for family in BUILDERS:
        with tempfile.TemporaryDirectory() as folder:
            compare(family, save_tiny(folder, family), arguments.rows, arguments.repeats)


if __name__ == "__main__":
    main()
