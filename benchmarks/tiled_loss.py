"""Time and peak memory of the losses block by block, against all logits at once, over batch sizes.

    python benchmarks/tiled_loss.py [--pairs 512 1024 2048 4096 8192 16384] [--dim 512] [--repeats 5]

Forward and backward with a learnable temperature. Times are of interleaved repeats, the ratio the median of
those of neighbours, beside the least and the greatest. Memory is how far the peak of a fresh process rises
above what it holds before the loss: it counts the gradients of the features, not the features. A batch of
at most `tiled.MAX_LOGITS` logits is not cut into blocks: there both ways are the same, and the ratio shows
how exact the measurement is. `--always` cuts into blocks of `tiled.MIN_ROWS` rows whatever the size: from
where on that is the faster way.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options, write
from fanoise_lightning.losses import InfoNCE, SigmoidLoss, tiled

LOSSES = {
    "InfoNCE": lambda: InfoNCE(0.07, learnable_temperature=True),
    "InfoNCE, symmetric": lambda: InfoNCE(0.07, symmetric=True, learnable_temperature=True),
    "InfoNCE, target ids": lambda: InfoNCE(0.07, learnable_temperature=True),
    "SigmoidLoss": SigmoidLoss,
}
WAYS = {"plain": sys.maxsize, "tiled": tiled.MAX_LOGITS, "always": 1}  # the most logits held at once


def inputs(name: str, pairs: int, dim: int) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    features = {
        side: F.normalize(torch.randn(pairs, dim), dim=1).requires_grad_() for side in ("query", "target")
    }
    ids = {"target_ids": torch.randint(pairs // 4, (pairs,))} if name.endswith("ids") else {}
    return LOSSES[name](), {**features, **ids}


def step(
    way: str, loss: nn.Module, batch: dict[str, Tensor], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one forward and backward pass."""
    tiled.MAX_LOGITS = WAYS[way]
    start = clock()
    loss(**batch).backward()
    seconds = clock() - start
    loss.zero_grad()
    for features in (batch["query"], batch["target"]):
        features.grad = None
    return seconds


def resident(peak: bool = False) -> float:
    """Megabytes that this process holds, or the most that it has held since it was last asked (Linux)."""
    status = Path("/proc/self/status").read_text()
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    return int(re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status)[1]) / 1024


def measure_memory(name: str, way: str, pairs: int, dim: int) -> float:
    """Megabytes, measured in a process of its own."""
    options = ["--pairs", str(pairs), "--dim", str(dim), "--threads", str(torch.get_num_threads())]
    command = [sys.executable, __file__, "--memory", name, way, *options]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(name: str, pairs: int, options: argparse.Namespace) -> list[Figure]:
    ways = ("plain", "always" if options.always else "tiled")
    plain, blocks = (measure_memory(name, way, pairs, options.dim) for way in ways)
    loss, batch = inputs(name, pairs, options.dim)
    clock = time.process_time if options.cpu_seconds else time.perf_counter
    times = [[step(way, loss, batch, clock) for way in ways] for _ in range(options.repeats + 1)][1:]
    ratios = sorted(b / a for a, b in times)
    ratio, (first, second) = statistics.median(ratios), map(statistics.median, zip(*times))
    spread = f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(
        f"{pairs:6} {name:20} {1e3 * first:9.1f} {1e3 * second:9.1f} {spread:>20}   "
        f"{plain:8.0f} {blocks:8.0f} {blocks / max(plain, 1e-9):7.1%}",
        flush=True,
    )
    title = f"{name}, {pairs} pairs, of all logits at once"
    figures = [Figure(f"time of {title}", ratio, "x", ratios[0], ratios[-1])]
    if pairs >= 8192:
        figures[0] = replace(figures[0], at_most=1.0)
        figures.append(Figure(f"memory of {title}", blocks / plain, "x", at_most=0.2))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=["InfoNCE", "SigmoidLoss"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--always", action="store_true", help="cut batches of any size into blocks")
    parser.add_argument("--cpu-seconds", action="store_true", help="which vary less on a busy machine")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)  # loss and way, in a process of its own
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        name, way = options.memory
        step(way, *inputs(name, 8, options.dim))  # what is loaded at the first use
        loss, batch = inputs(name, options.pairs[0], options.dim)
        before = resident()
        step(way, loss, batch)
        print(resident(peak=True) - before)
        return
    print(f"torch {torch.__version__}, {options.threads} threads, {platform.machine()}, D = {options.dim}")
    print(
        f"{'pairs':>6} {'':20} {'plain ms':>9} {'tiled ms':>9} {'ratio':>20}   "
        f"{'plain MB':>8} {'tiled MB':>8} {'ratio':>7}"
    )
    figures = [
        figure
        for name in options.losses
        for pairs in options.pairs
        for figure in compare(name, pairs, options)
    ]
    write(figures, options.json)


if __name__ == "__main__":
    main()
