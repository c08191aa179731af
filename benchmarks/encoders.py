"""Rows per second of the encoders against the plain transformers forward of the same inputs.

    python benchmarks/encoders.py [--rows 64] [--repeats 30] [--model FOLDER_OR_HUB_ID] [--device cuda]

Both sides hold the same weights and get the same mixed batch. For vision-language models: texts, images,
texts with one and with two images; the plain side calls the inner model and takes the last position. For
two-tower models: texts, images, and both; the plain side calls the towers. The sides take turns, so that
both see the same machine; medians, and the median of the ratios. Without a model: a tiny (two towers: small)
random one of each family, where whatever the encoder adds weighs most.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from fanoise_lightning import Sample, TwoTowerEncoder, VisionLanguageEncoder
from fanoise_lightning.encoders.eight_bit import to_floats
from fanoise_lightning.encoders.families import FAMILIES

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "encoders"))

import tiny_models
import tiny_two_towers

from benchmarks.clock import in_turns
from benchmarks.figures import Figure, add_options, write

TOWERS = {"clip": tiny_two_towers.clip, "siglip": tiny_two_towers.siglip, "siglip2": tiny_two_towers.siglip2}
IMAGES = [
    tiny_models.make_image(90, 60, 1),
    tiny_models.make_image(60, 90, 2),
    tiny_models.make_image(64, 64, 3),
]
KINDS = [Sample("a red apple on a table"), Sample(image=IMAGES[0]), Sample("what is it", IMAGES[1])]
SEVERAL = Sample("the same", (IMAGES[2], IMAGES[0]))


def save_towers(folder: str, family: str) -> str:
    """A random model of six layers of 256: a tiny one takes 2 ms for 64 rows, hardly more than the call."""
    network, processor = TOWERS[family]()
    config = network.config
    for part in (config.text_config, config.vision_config):
        part.hidden_size, part.intermediate_size, part.num_hidden_layers = 256, 1024, 6
    if hasattr(config.text_config, "projection_size"):
        config.text_config.projection_size = 256
    type(network)(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def plain_language_model(encoder: VisionLanguageEncoder, batch: dict[str, Tensor]) -> Tensor:
    return encoder.network.model(**batch, use_cache=False).last_hidden_state[:, -1]


def plain_towers(encoder: TwoTowerEncoder, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    ours = ("kind", "text_index", "text_rows", "image_rows")
    text = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    image = {name: value for name, value in batch.items() if name not in (*ours, *text)}
    return (
        encoder.network.get_text_features(**text).pooler_output,
        encoder.network.get_image_features(**image).pooler_output,
    )


@torch.no_grad()
def compare(name: str, encoder: Any, plain: Callable[..., Any], kinds: list[Sample], options: Any) -> Figure:
    """Print the rates of both sides; the ratio of ours to theirs."""
    encoder = encoder.eval().to(options.device)
    samples = [kinds[row % len(kinds)] for row in range(options.rows)]
    batch = {key: value.to(options.device) for key, value in encoder.collate(samples).items()}
    floats = to_floats(batch)  # as the processor hands them to a plain forward
    sides = (lambda: plain(encoder, floats), lambda: encoder(**batch))
    times = in_turns(sides, options.repeats, options.device)
    theirs, ours = (options.rows / statistics.median(column) for column in zip(*times))
    ratios = [a / b for a, b in times]
    ratio = statistics.median(ratios)
    alone = in_turns([lambda: encoder.collate(samples)], 5)
    collating = options.rows / statistics.median(once for (once,) in alone)
    print(f"{name:12} {theirs:12.1f} {ours:12.1f} {ratio:7.3f} {collating:17.1f}", flush=True)
    return Figure(f"{name}, rate, of transformers", ratio, "x", min(ratios), max(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--model")
    add_options(parser, device=True)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rows} rows, {options.device}"
    )
    print("rows/s       transformers         ours   ratio   collating alone")
    if options.model:
        model_type = transformers.AutoConfig.from_pretrained(options.model).model_type
        jobs = [(model_type, options.model)]
    else:
        jobs = [(family, None) for family in (*tiny_models.BUILDERS, *TOWERS)]
    figures = []
    for family, model in jobs:
        with tempfile.TemporaryDirectory() as folder:
            if family in FAMILIES:
                encoder = VisionLanguageEncoder(model or tiny_models.save_tiny(folder, family))
                figures.append(compare(family, encoder, plain_language_model, [*KINDS, SEVERAL], options))
            else:
                towers = TwoTowerEncoder(model or save_towers(folder, family))
                figures.append(compare(family, towers, plain_towers, KINDS, options))
    write(figures, options.json)


if __name__ == "__main__":
    main()
