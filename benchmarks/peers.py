"""Training by ContrastiveModule and Trainer, beside a plain loop, sentence-transformers and open_clip.

    OMP_NUM_THREADS=1 python benchmarks/peers.py [--size tiny] [--rounds 7] [--steps 16] [--workers 0 1]

The CLIP of transformers is trained by a plain PyTorch loop, by ours and by SentenceTransformerTrainer; an
open_clip model by a plain loop, by ours and by `open_clip_train`: same weights, pictures, texts, batch
size, loss and optimiser. In each round each trains once, in turn; its time is the median of the steps after
the first four, from the end of one optimiser step to that of the next. A ratio is another's time over ours:
above 1, ours is faster. It is the median of the rounds, beside the least and the greatest. CPU seconds are
those of the main process; they vary less on a busy machine, and omit what workers do. A peer that is not
installed is an error.

With `--size tiny`, a step takes some 90 ms on one core, so that every millisecond around it shows; with
`small`, of eight layers of 384 and 224 pixels, more than a second.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch.optim.optimizer import register_optimizer_step_post_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import encoders  # whose import finds tests/encoders
from benchmarks.figures import Figure, add_options, write
from benchmarks.peer_trainers import Clip, Job, OpenClip, write_pairs

WARM_UP = 4
Train = Callable[[Job], None]
PEERS = {"sentence_transformers": "sentence-transformers", "open_clip_train": "open_clip_torch"}


class Size(NamedTuple):
    """Of both towers; `batch` pairs a step, and what has to be reached beside the plain loop."""

    width: int
    layers: int
    pixels: int
    patch: int
    batch: int
    at_least: float


SIZES = {"tiny": Size(128, 4, 64, 16, 32, 0.95), "small": Size(384, 8, 224, 32, 32, 0.99)}


def save_clip(folder: Path, size: Size) -> str:
    network, processor = encoders.TOWERS["clip"]()
    config = network.config
    for part in (config.text_config, config.vision_config):
        part.hidden_size, part.intermediate_size = size.width, 4 * size.width
        part.num_hidden_layers, part.num_attention_heads = size.layers, size.width // 32
    config.vision_config.image_size, config.vision_config.patch_size = size.pixels, size.patch
    images = processor.image_processor
    images.size, images.crop_size = (
        {"shortest_edge": size.pixels},
        {"height": size.pixels, "width": size.pixels},
    )
    type(network)(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def save_open_clip(file: Path, size: Size) -> str:
    tower = {"width": size.width, "layers": size.layers}
    config = {
        "embed_dim": size.width,
        "vision_cfg": {**tower, "image_size": size.pixels, "patch_size": size.patch, "head_width": 32},
        "text_cfg": {**tower, "context_length": 16, "vocab_size": 49408, "heads": size.width // 32},
    }
    file.write_text(json.dumps(config))
    return str(file)


class Stopwatch:
    """Notes the time at the end of every optimiser step, of whatever trainer."""

    def __init__(self, device: str) -> None:
        self.device, self.ends = device, list[tuple[float, float]]()
        register_optimizer_step_post_hook(self._note)

    def _note(self, *_: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))

    def measure(self, train: Train, job: Job) -> tuple[float, float]:
        """Seconds and CPU seconds of a step."""
        self.ends.clear()
        with silence():
            train(job)
        if len(self.ends) != len(job.texts) // job.batch_size:
            raise RuntimeError(f"{train.__name__} made {len(self.ends)} steps")
        ends = self.ends[WARM_UP - 1 :]
        wall, cpu = zip(*[(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)])
        return statistics.median(wall), statistics.median(cpu)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def compare(
    watch: Stopwatch, name: str, trainers: list[Train], job: Job, rounds: int, at_least: float
) -> list[Figure]:
    """Ours is the last of the trainers, the plain loop the first."""
    first = (WARM_UP + 2) * job.batch_size
    for train in trainers:  # what is imported and allocated at the first use
        watch.measure(train, replace(job, texts=job.texts[:first], images=job.images[:first]))
    times: dict[str, list[tuple[float, float]]] = {train.__name__: [] for train in trainers}
    for number in range(rounds):
        for train in trainers[:: 1 if number % 2 else -1]:
            times[train.__name__].append(watch.measure(train, job))
    mine, figures = times[trainers[-1].__name__], []
    for other, found in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*found))
        row = f"{name}, {job.workers} workers"
        print(f"{row:22}{other:22}{1e3 * wall:8.1f}{1e3 * cpu:8.1f}", end="")
        ratios = [sorted(a[clock] / b[clock] for a, b in zip(found, mine)) for clock in (0, 1)]
        if found is not mine:
            for column in ratios:
                print(f"{statistics.median(column):9.3f} ({column[0]:.3f} to {column[-1]:.3f})", end="")
            target = at_least if other == "plain" else 1.0
            title = f"{name}, {job.workers} workers, of {other.replace('_', '-')}"
            value = statistics.median(ratios[0])
            figures.append(Figure(title, value, "x", ratios[0][0], ratios[0][-1], at_least=target))
        print(flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=16, help="that are timed in a round")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--models", nargs="+", choices=["clip", "open_clip"], default=["clip", "open_clip"])
    add_options(parser, device=True)
    options = parser.parse_args()
    for module, package in PEERS.items():
        if find_spec(module) is None:
            raise SystemExit(f"{package} is not installed: pip install {package}")
    for logger in ("lightning.pytorch", "fanoise_lightning", ""):
        logging.getLogger(logger).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    size, watch, figures = SIZES[options.size], Stopwatch(options.device), []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}, ", end="")
    print(f"{options.size}: batches of {size.batch}")
    print(f"{'':44}{'ms':>8}{'CPU ms':>8}{'ratio':>9}{'':17}{'CPU ratio':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = (options.steps + WARM_UP) * size.batch
        texts, images = write_pairs(folder, rows, size.pixels)
        with silence():
            clip = Clip(save_clip(folder / "clip", size))
            open_clip = OpenClip(save_open_clip(folder / "tower.json", size))
        trainers: dict[str, list[Train]] = {
            "clip": [clip.plain, clip.sentence_transformers, clip.fanoise],
            "open_clip": [open_clip.plain, open_clip.open_clip, open_clip.fanoise],
        }
        for workers in options.workers:
            job = Job(texts, images, size.batch, workers, options.device)
            for model in options.models:
                figures += compare(watch, model, trainers[model], job, options.rounds, size.at_least)
    write(figures, options.json)


if __name__ == "__main__":
    main()
