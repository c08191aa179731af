"""How long one draw of FANoise takes, against the same noise by ``torch.linalg.svd``.

    python benchmarks/noise.py [--threads 2] [--repeats 15]

Both sides draw the noise and return it, in turns. Shown are the median times in milliseconds, and the median
of the ratios turn by turn, which other processes on the machine disturb less.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning import feature_noise

SHAPES = [(128, 512), (256, 1536), (512, 1536), (1024, 3584), (2048, 1536)]


def svd_noise(features: Tensor, alpha: float, scaling: str) -> Tensor:
    """The published formula, written down as it stands."""
    _, s, vh = torch.linalg.svd(features, full_matrices=False)
    scale = {"uniform": torch.ones_like(s), "linear": s / s.mean(), "sublinear": s.sqrt() / s.sqrt().mean()}
    noise = torch.randn(len(features), len(s)) * scale[scaling]
    return alpha / math.sqrt(features.shape[1]) * noise @ vh


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {platform.machine()}, medians in ms")
    print(f"{'B x D':>12}  {'scaling':10} {'svd':>9} {'fanoise':>9} {'ratio':>6}")
    for rows, dim in SHAPES:
        features = F.normalize(torch.randn(rows, dim) * torch.linspace(1, 0.05, dim), dim=1)
        for scaling in ("uniform", "linear", "sublinear"):
            sides = [partial(f, features, 0.1, scaling) for f in (svd_noise, feature_noise)]
            for side in sides:
                side()  # warm up
            times = [[seconds(side) for side in sides] for _ in range(options.repeats)]
            svd, ours = (1e3 * statistics.median(column) for column in zip(*times))
            ratio = statistics.median(one / other for one, other in times)
            print(f"{f'{rows} x {dim}':>12}  {scaling:10} {svd:9.2f} {ours:9.2f} {ratio:6.1f}")


if __name__ == "__main__":
    main()
