"""Time and peak memory of the losses block by block, against all logits at once.

    python benchmarks/tiled_loss.py [--pairs 16384] [--dim 512] [--threads 2] [--repeats 5]

Forward and backward with a learnable temperature. Times are medians of interleaved repeats, their ratio the
median of the ratios of neighbours. Memory is how far the peak of a fresh process rises above what it holds
before the loss: it counts the gradients of the features, not the features.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fanoise_lightning.losses import InfoNCE, SigmoidLoss, tiled

LOSSES = {
    "InfoNCE": lambda: InfoNCE(0.07, learnable_temperature=True),
    "InfoNCE, symmetric": lambda: InfoNCE(0.07, symmetric=True, learnable_temperature=True),
    "InfoNCE, target ids": lambda: InfoNCE(0.07, learnable_temperature=True),
    "SigmoidLoss": SigmoidLoss,
}
WAYS = {"plain": sys.maxsize, "tiled": tiled.MAX_LOGITS}  # the most logits held at once


def inputs(name: str, pairs: int, dim: int) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    features = {
        side: F.normalize(torch.randn(pairs, dim), dim=1).requires_grad_() for side in ("query", "target")
    }
    ids = {"target_ids": torch.randint(pairs // 4, (pairs,))} if name.endswith("ids") else {}
    return LOSSES[name](), {**features, **ids}


def step(way: str, loss: nn.Module, batch: dict[str, Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    tiled.MAX_LOGITS = WAYS[way]
    start = time.perf_counter()
    loss(**batch).backward()
    seconds = time.perf_counter() - start
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16384)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)  # loss and way, in a process of its own
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        name, way = options.memory
        step(way, *inputs(name, 8, options.dim))  # what is loaded at the first use
        loss, batch = inputs(name, options.pairs, options.dim)
        before = resident()
        step(way, loss, batch)
        print(resident(peak=True) - before)
        return
    print(f"torch {torch.__version__}, {options.threads} threads, {platform.machine()}, ", end="")
    print(f"{options.pairs} x {options.dim}")
    print(
        f"{'':20} {'plain s':>8} {'tiled s':>8} {'ratio':>6}   {'plain MB':>8} {'tiled MB':>8} {'ratio':>6}"
    )
    for name in LOSSES:
        memory = [measure_memory(name, way, options.pairs, options.dim) for way in WAYS]
        loss, batch = inputs(name, options.pairs, options.dim)
        times = [[step(way, loss, batch) for way in WAYS] for _ in range(options.repeats)]
        plain, blocks = (statistics.median(column) for column in zip(*times))
        ratio = statistics.median(b / a for a, b in times)
        print(f"{name:20} {plain:8.2f} {blocks:8.2f} {ratio:6.2f}   ", end="")
        print(f"{memory[0]:8.0f} {memory[1]:8.0f} {memory[1] / memory[0]:6.1%}", flush=True)


if __name__ == "__main__":
    main()
