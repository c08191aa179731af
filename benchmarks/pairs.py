"""Time and memory of `PairDataModule` from its start to the first batch, by file type and number of rows.

Seconds are those of the clock, and those of the processor, which matter on a machine with other work. Each
run is a process of its own; its memory is the peak above that of the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options
from benchmarks.figures import write as write_figures

WORDS = [first + second for first in ("ba", "ko", "li", "mer", "sun") for second in ("na", "tor", "vel", "x")]
MOST = {("jsonl", 1_000_000): (8, 2000)}  # seconds, MB
RUNS = (("jsonl", 1_000_000), ("parquet", 1_000_000), ("csv", 1_000_000), ("parquet", 3_000_000))


def blocks(rows: int, size: int = 100_000) -> Iterator[dict[str, list[str]]]:
    """MMEB's columns: queries and targets of eight words, each different, and no pictures."""
    random = np.random.default_rng(0)
    for start in range(0, rows, size):
        numbers = range(start, min(start + size, rows))
        words = np.array(WORDS)[random.integers(len(WORDS), size=(2, len(numbers), 8))].tolist()
        queries, targets = ([f"{' '.join(line)} {n}" for n, line in zip(numbers, side)] for side in words)
        none = [""] * len(numbers)
        yield {"qry": queries, "qry_image_path": none, "pos_text": targets, "pos_image_path": none}


def write(file: Path, rows: int) -> None:
    """Write the rows, a block at a time."""
    names = next(blocks(1)).keys()
    with file.open("wb") as out:
        if file.suffix == ".parquet":
            schema = pa.schema(dict.fromkeys(names, pa.string()))
            with pq.ParquetWriter(out, schema) as writer:
                for block in blocks(rows):
                    writer.write_table(pa.table(block, schema))
            return
        if file.suffix == ".csv":
            out.write(",".join(names).encode() + b"\n")
        for block in blocks(rows):
            for row in zip(*block.values()):
                line = json.dumps(dict(zip(names, row))) if file.suffix == ".jsonl" else ",".join(row)
                out.write(line.encode() + b"\n")


def measure(file: Path) -> None:
    """Print the seconds to the first batch, of the clock and of the processor, and the MB above imports."""
    import torch

    from fanoise_lightning.data import PairDataModule

    def collate(samples: list) -> dict[str, torch.Tensor]:
        return {"n": torch.ones(len(samples))}

    before, start, used = peak(), time.perf_counter(), time.process_time()
    data = PairDataModule(file, batch_size=128, num_workers=0, collate=collate)
    data.setup("fit")
    next(iter(data.train_dataloader()))
    times = time.perf_counter() - start, time.process_time() - used
    print(f"{times[0]:.1f} {times[1]:.1f} {peak() - before:.0f}")


def peak() -> float:
    """The largest resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, default=1.0, help="of the rows")
    add_options(parser)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
        return
    print(f"{os.cpu_count()} cores, pyarrow {pa.__version__}")
    print(f"{'':8}{'rows':>10}{'MB on disk':>12}{'seconds':>9}{'CPU seconds':>13}{'MB above imports':>18}")
    figures = []
    for suffix, rows in RUNS:
        rows = int(rows * options.share)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"pairs.{suffix}"
            write(file, rows)
            command = [sys.executable, __file__, "--measure", str(file)]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, used, memory = found.split()[-3:]
            size = file.stat().st_size / 2**20
            print(f"{suffix:8}{rows:10}{size:12.0f}{seconds:>9}{used:>13}{memory:>18}", flush=True)
        most = MOST.get((suffix, rows), (None, None))
        name = f"first batch of {rows:,} rows of {suffix}"
        figures.append(Figure(name, float(seconds), "s", at_most=most[0]))
        figures.append(Figure(f"{name}, of the processor", float(used), "s"))
        figures.append(Figure(f"{name}, memory", float(memory), "MB", at_most=most[1]))
    write_figures(figures, options.json)


if __name__ == "__main__":
    main()
