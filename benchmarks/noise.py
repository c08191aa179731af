"""How long one draw of FANoise takes, against the same noise by ``torch.linalg.svd``.

    python benchmarks/noise.py [--threads 2] [--repeats 9] [--device cuda] [--json FILE]

Both draw the noise and return it, in turns; so does a third, which keeps the shape of sublinear noise as
``every_n_steps`` does between decompositions. Shown are the median times in milliseconds, and of the ratios
turn by turn the median, the least and the greatest: other processes on the machine disturb them less.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options, write
from fanoise_lightning import feature_noise
from fanoise_lightning.noise import noise_shape

SHAPES = [(128, 512), (256, 1536), (512, 1536), (1024, 3584), (2048, 1536)]
SAVED = 70  # percent of a draw that a kept shape has to save


def svd_noise(features: Tensor, alpha: float, scaling: str) -> Tensor:
    """The published formula, written down as it stands."""
    _, s, vh = torch.linalg.svd(features, full_matrices=False)
    scale = {"uniform": torch.ones_like(s), "linear": s / s.mean(), "sublinear": s.sqrt() / s.sqrt().mean()}
    noise = torch.randn(len(features), len(s), device=features.device) * scale[scaling]
    return alpha / math.sqrt(features.shape[1]) * noise @ vh


def seconds(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    drawn = run()
    if drawn.is_cuda:
        torch.cuda.synchronize(drawn.device)
    return time.perf_counter() - start


def rounds(runs: list[Callable[[], Tensor]], repeats: int) -> list[list[float]]:
    """The seconds of each run in each round, after two rounds to warm up threads, caches and LAPACK."""
    return [[seconds(run) for run in runs] for _ in range(repeats + 2)][2:]


def spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def measure(features: Tensor, scaling: str, repeats: int) -> list[Figure]:
    size = " x ".join(map(str, features.shape))
    runs: list[Callable[[], Tensor]] = [
        partial(f, features, 0.1, scaling) for f in (svd_noise, feature_noise)
    ]
    if scaling == "sublinear":
        runs.append(partial(noise_shape(features).folded().sample, features, 0.1))
    times = rounds(runs, repeats)
    ratio = spread([svd / ours for svd, ours, *_ in times])
    medians = [1e3 * statistics.median(column) for column in zip(*times)]
    line = f"{size:>12}  {scaling:10}" + "".join(f"{x:10.2f}" for x in medians[:2])
    line += f"   {ratio[0]:6.1f} ({ratio[1]:.1f} to {ratio[2]:.1f})"
    figures = [Figure(f"one draw, times faster than svd, {scaling}, {size}", ratio[0], "x", *ratio[1:])]
    if scaling == "sublinear":
        saved = spread([100 * (1 - kept / ours) for _, ours, kept in times])
        name = f"what a draw from a kept shape saves, {size}"
        figures.append(Figure(name, saved[0], "%", *saved[1:], at_least=SAVED))
        line += f"   kept {medians[2]:.2f}, saves {saved[0]:.0f} % ({saved[1]:.0f} to {saved[2]:.0f})"
    print(line, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    add_options(parser, device=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = f"{options.threads} threads, {platform.machine()}"
    if options.device.startswith("cuda"):
        where = torch.cuda.get_device_name(options.device)
    print(f"torch {torch.__version__}, {where}, medians in ms, ratios with the least and the greatest")
    print(f"{'B x D':>12}  {'scaling':10}{'svd':>10}{'fanoise':>10}   {'ratio':>6}")
    figures = []
    for rows, dim in SHAPES:
        features = F.normalize(torch.randn(rows, dim) * torch.linspace(1, 0.05, dim), dim=1)
        for scaling in ("uniform", "linear", "sublinear"):
            figures += measure(features.to(options.device), scaling, options.repeats)
    write(figures, options.json)


if __name__ == "__main__":
    main()
