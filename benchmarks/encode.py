"""Embedding texts and pictures: the rate beside sentence-transformers, and time and memory as rows grow.

    python benchmarks/encode.py [--rows 10000] [--rounds 5] [--batch-size 64]
    python benchmarks/encode.py --grow 1000 10000 100000

The rate: `ContrastiveModule.encode` and `SentenceTransformer.encode` with the same weights, a CLIP of six
layers of 256 from random weights, on the same texts (1 to 12 words) and pictures (64x64, in memory), with the
same batch size, in turns; medians, and the median of the ratios round by round. Then `embed` into a new
folder, of the same texts and of the pictures as PNG files, which the other side opens. Both must give the
same vectors. Without sentence-transformers it is an error.

Growth: each number of rows in a fresh process, texts and the paths of pictures, a hundred of which are
different, by a tiny CLIP, which leaves most of the time to the way there. Memory is the peak of the resident
set over what it was after the first batches, less the vectors that are returned.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoders import save_towers, tiny_two_towers
from PIL import Image
from sentence_transformers import SentenceTransformer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options, write
from fanoise_lightning import ContrastiveModule, TwoTowerEncoder, embed

WORDS = ("a", "the", "red", "green", "blue", "apple", "pear", "small", "on", "under", "table", "photo", "of")


def texts(rows: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(rows)]


def pictures(rows: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(rows)]


def seconds(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def compare(folder: str, rows: int, rounds: int, batch_size: int, clock: Callable[[], float]) -> list[Figure]:
    ours, theirs = ContrastiveModule(TwoTowerEncoder(folder)), SentenceTransformer(folder, device="cpu")
    options = {"batch_size": batch_size, "show_progress_bar": False}

    def encode(samples: list[Any]) -> np.ndarray:
        return ours.encode(samples, convert_to_numpy=True, **options)

    def into_folder(source: list[dict[str, str]]) -> np.ndarray:
        with tempfile.TemporaryDirectory() as out:
            trainer = {"accelerator": "cpu", "enable_progress_bar": False}
            found = embed(ours, source, out, dtype="float32", batch_size=batch_size, num_workers=0, **trainer)
            return torch.cat(list(found.shards())).clone().numpy()

    def reference(samples: list[Any]) -> np.ndarray:
        return theirs.encode(samples, normalize_embeddings=True, **options)

    captions, photos = texts(rows), pictures(rows)
    files = [Path(folder) / f"{row}.png" for row in range(rows)]
    for file, photo in zip(files, photos):
        photo.save(file)
    print(f"{'':16}{'ours, rows/s':>14}{'theirs':>10}{'ratio of rates':>24}")
    figures = []
    for name, our_side, their_side in (
        ("texts", lambda: encode(captions), lambda: reference(captions)),
        ("pictures", lambda: encode(photos), lambda: reference(photos)),
        (
            "embed, texts",
            lambda: into_folder([{"text": text} for text in captions]),
            lambda: reference(captions),
        ),
        (
            "embed, files",
            lambda: into_folder([{"image": str(file)} for file in files]),
            lambda: reference([Image.open(file) for file in files]),
        ),
    ):
        sides = (our_side, their_side)
        apart = np.abs(sides[0]() - sides[1]()).max()  # and a warm-up
        if apart > 1e-4:
            raise SystemExit(f"{name}: the vectors differ by up to {apart:.1e}")
        times: list[list[float]] = [[], []]
        for number in range(rounds):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                times[side].append(seconds(sides[side], clock))
        rates = [rows / statistics.median(side) for side in times]
        ratios = sorted(b / a for a, b in zip(*times))
        middle = statistics.median(ratios)
        spread = f"{middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{name:16}{rates[0]:14.0f}{rates[1]:10.0f}{spread:>24}", flush=True)
        title = f"rate of {name} ({rows} rows), of SentenceTransformer.encode"
        target = None if name.startswith("embed") else 1.0  # embed also hashes the model and writes a folder
        figures.append(Figure(title, middle, "x", ratios[0], ratios[-1], at_least=target))
    return figures


def grow(folder: str, sizes: list[int], batch_size: int) -> None:
    print(f"{'':10}{'rows':>9}{'s':>9}{'rows/s':>9}{'MB':>7}")
    for kind in ("texts", "paths"):
        for rows in sizes:
            command = [sys.executable, __file__, "--one", folder, kind, str(rows), str(batch_size)]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            taken, extra = told.split()[-2:]
            rate = rows / float(taken)
            print(f"{kind:10}{rows:9}{float(taken):9.1f}{rate:9.0f}{float(extra):7.0f}", flush=True)


def measure_one(folder: str, kind: str, rows: int, batch_size: int) -> None:
    """In a process of its own: print the seconds and the megabytes of one call."""
    module = ContrastiveModule(TwoTowerEncoder(folder))
    if kind == "texts":
        samples: list[Any] = texts(rows)
    else:
        places = [Path(folder) / f"{number}.png" for number in range(100)]
        for place, picture in zip(places, pictures(100)):
            picture.save(place)
        samples = [places[row % 100] for row in range(rows)]
    module.encode(samples[: 2 * batch_size], batch_size=batch_size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured anew
    before = memory("VmRSS")
    start = time.perf_counter()
    vectors = module.encode(samples, batch_size=batch_size)
    taken = time.perf_counter() - start
    print(taken, (memory("VmHWM") - before - vectors.numel() * 4) / 2**20)


def memory(name: str) -> int:
    """Bytes of the resident set of this process: now, or its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cpu-seconds", action="store_true", help="which vary less on a busy machine")
    add_options(parser)
    parser.add_argument("--grow", type=int, nargs="+", metavar="ROWS")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.one:
        folder, kind, rows, batch_size = options.one
        measure_one(folder, kind, int(rows), int(batch_size))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.grow:
            for part in tiny_two_towers.clip():
                part.save_pretrained(folder)
        else:
            save_towers(folder, "clip")
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        if options.grow:
            grow(folder, options.grow, options.batch_size)
        else:
            clock = time.process_time if options.cpu_seconds else time.perf_counter
            write(compare(folder, options.rows, options.rounds, options.batch_size, clock), options.json)


if __name__ == "__main__":
    main()
