"""Time and memory of ``embed`` as the rows grow, and its rate beside that of ``ContrastiveModule.encode``.

    OMP_NUM_THREADS=1 python benchmarks/embed.py [--rows 1000 10000 100000] [--workers 0]

Each size runs in a process of its own: short texts through a tiny encoder, so that what is measured is what
`embed` does around it. Memory is the peak above that of the imports and the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from kill_embed import tiny_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options, write
from fanoise_lightning.search.embed import embed


def peak() -> float:
    """Megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(rows: int, workers: int) -> dict[str, float]:
    """Seconds and megabytes for so many rows, without the start of the process."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        module = tiny_model(root)
        options = {"num_workers": workers, "accelerator": "cpu", "enable_progress_bar": False}
        texts = [f"a thing of number {row} in the catalogue" for row in range(rows)]
        source = root / "rows.jsonl"
        with source.open("w") as file:
            for row, text in enumerate(texts):
                file.write(json.dumps({"id": str(row), "text": text}) + "\n")
        embed(module, ["warm up"], root / "warm", **options)
        before = peak()
        begin = time.perf_counter()
        embed(module, source, root / "index", **options)
        seconds, memory = time.perf_counter() - begin, peak() - before
        some = texts[:10_000]
        begin = time.perf_counter()
        module.encode(some, batch_size=64)
        encode = len(some) / (time.perf_counter() - begin)
        return {"seconds": seconds, "memory": memory, "rate": rows / seconds, "encode": encode}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    add_options(parser)
    given = parser.parse_args()
    if given.one:
        torch.set_num_threads(1)
        print(json.dumps(measure(given.one, given.workers)))
        return
    print(f"{'rows':>8} {'s':>8} {'rows/s':>8} {'of encode':>9} {'MB more':>8}")
    figures = []
    for rows in given.rows:
        command = [sys.executable, __file__, f"--one={rows}", f"--workers={given.workers}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        ratio = found["rate"] / found["encode"]
        print(
            f"{rows:>8} {found['seconds']:>8.1f} {found['rate']:>8.0f} {ratio:>9.2f} {found['memory']:>8.0f}",
            flush=True,
        )
        figures.append(Figure(f"rate of embed, {rows} texts, of encode", ratio, "x"))
        figures.append(Figure(f"memory of embed, {rows} texts", found["memory"], "MB"))
    write(figures, given.json)


if __name__ == "__main__":
    main()
