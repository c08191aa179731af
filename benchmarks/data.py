"""Training pairs per second of the data module, its memory, and how long the first batch takes.

    OMP_NUM_THREADS=1 python benchmarks/data.py [speed] [memory] [first] [--pairs 1280] [--repeats 5]

speed: images of 512x512 pixels, JPEG of quality 90, and a caption each, through CLIP's processor at 224
pixels. Ours reads them from a folder, from a zip archive and in a stream, against a plain loop of Pillow and
the processor in one process, and against `datasets` streaming with a torch DataLoader of one worker. All take
turns; medians, and the median of the ratios to the faster of the two. All end with the same float32 pixels,
which is checked: ours come in 8 bits and are normalised here, in the main process. Then the processor seconds
of a batch, all in one process, batch by batch in turn: of use where other programs run.

memory: the proportional set size of the process and its workers over 200,000 pairs. The images have 16x16
pixels, each is a member of its own in the archive, and the processor makes 32x32 of them: a leak counts pairs
and not pixels.

first: from the call for batches to the first one, with 20 subsets of 512x512 images.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options, write
from fanoise_lightning import MMEBDataModule, Sample, TwoTowerEncoder

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "encoders"))

import tiny_two_towers

BATCH = 64
KINDS = ("rows", "stream")  # of MMEBDataModule(streaming=...)
CAPTION = "a photograph of {} things on a table, number {}"


def photograph(side: int, seed: int) -> bytes:
    """Noise at several scales, as bright and as detailed as a photograph: about 70 kB at 512x512 pixels."""
    random = np.random.default_rng(seed)
    image = np.zeros((side, side, 3), np.float32)
    for cells, weight in ((3, 0.5), (12, 0.25), (48, 0.15), (192, 0.07), (side, 0.03)):
        noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), np.uint8))
        image += weight * np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "jpeg", quality=90)
    return file.getvalue()


def write_root(
    root: Path, images: list[bytes], *, rows: int, subsets: int, members: int, unpack: bool
) -> Path:
    """A root of `subsets` with `rows` each; the `members` of the archive are the `images` over and over."""
    (root / "train").mkdir(parents=True)
    (root / "eval").mkdir()
    names = [f"Train/COCO_train2014_{number:012}.jpg" for number in range(members)]
    if unpack:
        (root / "images" / "Train").mkdir(parents=True)
        for name, data in zip(names, itertools.cycle(images)):
            (root / "images" / name).write_bytes(data)
    else:
        with zipfile.ZipFile(root / "images.zip", "w") as archive:
            for name, data in zip(names, itertools.cycle(images)):
                archive.writestr(name, data)
    for subset in range(subsets):
        numbers = range(subset * rows, (subset + 1) * rows)
        columns = {
            "qry": ["<|image_1|>"] * rows,
            "qry_image_path": [names[number % members] for number in numbers],
            "pos_text": [CAPTION.format(subset, number) for number in numbers],
            "pos_image_path": [""] * rows,
        }
        pq.write_table(pa.table(columns), root / "train" / f"s{subset:02}.parquet", row_group_size=1000)
    row = {"qry_text": ["a"], "qry_img_path": [""], "tgt_text": [["b"]], "tgt_img_path": [[""]]}
    pq.write_table(pa.table(row), root / "eval" / "e.parquet")
    entry = {"name": "e", "meta_task": "retrieval", "distribution": "IND"}
    (root / "subsets.json").write_text(json.dumps([entry]))
    return root


def save_clip(folder: Path, side: int) -> str:
    """A tiny CLIP with the processor of a real one, at `side` pixels."""
    network, processor = tiny_two_towers.clip()
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    network.config.vision_config.image_size = side
    type(network)(network.config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def loader(root: Path, collate: Any, num_workers: int, **options: Any) -> Any:
    data = MMEBDataModule(root, batch_size=BATCH, num_workers=num_workers, collate=collate, **options)
    data.setup("fit")
    return data.train_dataloader()


def ours(*args: Any, **options: Any) -> Iterator[Any]:
    batches = loader(*args, **options)
    for epoch in itertools.count():
        batches.sampler.set_epoch(epoch)
        yield from batches


def normalised(collate: Any, batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        yield batch | {"query": collate.to_floats(batch["query"])}


def process(processor: Any, images: list[Image.Image], texts: list[str]) -> dict[str, Any]:
    return processor(images=images, text=texts, padding=True, truncation=True, return_tensors="pt")


def plain_loop(root: Path, processor: Any) -> Iterator[Any]:
    """(a) one process: a file, Pillow, the processor."""
    table = pq.read_table(root / "train").to_pylist()
    for start in itertools.cycle(range(0, len(table) - BATCH + 1, BATCH)):
        rows = table[start : start + BATCH]
        images = [Image.open(root / "images" / row["qry_image_path"]).convert("RGB") for row in rows]
        yield process(processor, images, [row["pos_text"] for row in rows])


def streaming(root: Path, processor: Any) -> Iterator[Any]:
    """(b) `datasets` streaming and a DataLoader with one worker."""
    files = sorted(str(path) for path in (root / "train").glob("*.parquet"))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        images = [Image.open(root / "images" / row["qry_image_path"]).convert("RGB") for row in batch]
        return process(processor, images, [row["pos_text"] for row in batch])

    while True:
        yield from DataLoader(rows, batch_size=BATCH, num_workers=1, collate_fn=collate, drop_last=True)


def rate(batches: Iterator[Any], pairs: int) -> float:
    """Pairs per second behind the first batch, which starts workers."""
    next(batches)
    start = time.perf_counter()
    for _ in range(pairs // BATCH):
        next(batches)
    return pairs / (time.perf_counter() - start)


def largest_difference(collate: Any, processor: Any, files: list[bytes]) -> float:
    """Of our pixels from the processor's."""
    images = [Image.open(io.BytesIO(file)) for file in files]
    found = collate.to_floats(collate([Sample(image=image) for image in images]))["pixel_values"]
    expected = process(processor, images, ["a"] * len(images))["pixel_values"]
    return float((found - expected).abs().max())


def cpu_seconds(ways: dict[str, Iterator[Any]], batches: int) -> dict[str, list[float]]:
    """Of each batch of each way, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(batches + 2):
        for name, way in ways.items():
            start = time.process_time()
            next(way)
            if turn > 1:
                seconds[name].append(time.process_time() - start)
    return seconds


def compare_speed(options: argparse.Namespace, folder: Path) -> list[Figure]:
    model = save_clip(folder / "clip", 224)
    processor, collate = transformers.AutoProcessor.from_pretrained(model), TwoTowerEncoder(model).collate
    images = [photograph(512, seed) for seed in range(300)]
    sizes = {"subsets": 4, "rows": options.pairs, "members": 300}
    unpacked = write_root(folder / "unpacked", images, unpack=True, **sizes)
    packed = write_root(folder / "packed", images, unpack=False, **sizes)
    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "loop of Pillow and the processor": lambda: plain_loop(unpacked, processor),
        "datasets and DataLoader, 1 worker": lambda: streaming(unpacked, processor),
        "ours, folder, 1 worker": lambda: normalised(collate, ours(unpacked, collate, 1)),
        "ours, zip, 1 worker": lambda: normalised(collate, ours(packed, collate, 1)),
        "ours, zip, 2 workers": lambda: normalised(collate, ours(packed, collate, 2)),
        "ours, zip, stream, 1 worker": lambda: normalised(collate, ours(packed, collate, 1, streaming=True)),
        "ours, zip, decode_size=224, 1 worker": lambda: normalised(
            collate, ours(packed, collate, 1, decode_size=224)
        ),
    }
    rounds = [
        {name: rate(way(), options.pairs) for name, way in ways.items()} for _ in range(options.repeats)
    ]
    size = statistics.mean(map(len, images)) / 1000
    print(f"\n300 JPEGs of 512x512 pixels, {size:.0f} kB each; batches of {BATCH}")
    difference = largest_difference(collate, processor, images[:BATCH])
    print(f"our pixels differ from the processor's by at most {difference:.1g}")
    print(f"{'':38}{'pairs/s':>8}  of the faster of the first two")
    found = [Figure("largest difference of our pixels", difference, at_most=1e-6)]
    for name in ways:
        shares = [rates[name] / max(list(rates.values())[:2]) for rates in rounds]
        share, low, high = statistics.median(shares), min(shares), max(shares)
        speed = statistics.median(rates[name] for rates in rounds)
        print(f"{name:38}{speed:8.1f}  {share:.3f} ({low:.3f} to {high:.3f})")
        target = 2.0 if name in ("ours, folder, 1 worker", "ours, zip, 1 worker") else None
        if name.startswith("ours"):
            found.append(Figure(f"pairs/s, {name}", share, "x", low, high, at_least=target))
    gain = statistics.median(rates["ours, zip, 2 workers"] / rates["ours, zip, 1 worker"] for rates in rounds)
    print(f"2 workers against 1: {gain:.2f}")
    in_one = {
        "plain": plain_loop(unpacked, processor),
        "what a worker does, folder": ours(unpacked, collate, 0),
        "what a worker does, zip": ours(packed, collate, 0),
        "with normalising, folder": normalised(collate, ours(unpacked, collate, 0)),
    }
    seconds = cpu_seconds(in_one, 4 * options.repeats)
    print(f"\n{'CPU of a batch, in one process':38}{'ms':>8}  times less than the plain loop")
    for name, each in seconds.items():
        gains = [theirs / mine for theirs, mine in zip(seconds["plain"], each)]
        gain, low, high = statistics.median(gains), min(gains), max(gains)
        print(f"{name:38}{1000 * statistics.median(each):8.1f}  {gain:.2f} ({low:.2f} to {high:.2f})")
        if name != "plain":
            found.append(Figure(f"CPU of a batch, {name}", gain, "x", low, high))
    return found


def resident() -> float:
    """MB of the process and its workers, what they share counted once.

    Without mapped files: of the libraries the kernel counts a share, which changes with the other processes
    on the machine.
    """
    total = 0
    for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += sum(int(rollup.split(f"\n{kind}:")[1].split()[0]) for kind in ("Pss_Anon", "Pss_Shmem"))
    return total / 1024


def watch_memory(options: argparse.Namespace, folder: Path) -> list[Figure]:
    collate = TwoTowerEncoder(save_clip(folder / "clip", 32)).collate
    images = [photograph(16, seed) for seed in range(300)]
    rows = options.memory_pairs // 20
    root = write_root(folder / "root", images, rows=rows, subsets=20, members=rows * 20, unpack=False)
    found = []
    print(f"\nMB of the process and 2 workers after each tenth of {options.memory_pairs} pairs, 20 subsets")
    for stream in (False, True):
        batches = ours(root, collate, 2, streaming=stream)
        sizes = []
        for _ in range(10):
            for _ in range(options.memory_pairs // BATCH // 10):
                next(batches)
            sizes.append(resident())
        batches.close()
        growth = 100 * (sizes[-1] / sizes[0] - 1)
        figures = " ".join(f"{size:.0f}" for size in sizes)
        print(f"{KINDS[stream]:6} {figures}  {growth:+.1f} %", flush=True)
        found.append(Figure(f"growth of memory, {KINDS[stream]}", growth, "%"))
    return found


def time_first_batch(options: argparse.Namespace, folder: Path) -> list[Figure]:
    collate = TwoTowerEncoder(save_clip(folder / "clip", 224)).collate
    images = [photograph(512, seed) for seed in range(300)]
    root = write_root(folder / "root", images, rows=1000, subsets=20, members=300, unpack=False)
    found = []
    print("\nseconds to the first batch, 20 subsets, 2 workers")
    for stream in (False, True):
        seconds = []
        for _ in range(options.repeats):
            batches = loader(root, collate, 2, streaming=stream)
            start = time.perf_counter()
            next(iter(batches))
            seconds.append(time.perf_counter() - start)
        middle = statistics.median(seconds)
        print(f"{KINDS[stream]:6} {middle:.2f}, at most {max(seconds):.2f}", flush=True)
        name = f"first batch, {KINDS[stream]}"
        found.append(Figure(name, middle, "s", min(seconds), max(seconds)))
    return found


PARTS = {"speed": compare_speed, "memory": watch_memory, "first": time_first_batch}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="|".join(PARTS))
    parser.add_argument("--pairs", type=int, default=1280)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-pairs", type=int, default=200_000)
    add_options(parser)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, Pillow {Image.__version__}")
    found: list[Figure] = []
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found += PARTS[part](options, Path(folder))
    write(found, options.json)


if __name__ == "__main__":
    main()
