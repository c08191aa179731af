"""How close the noise comes to the published formula by ``torch.linalg.svd`` in float64.

    python benchmarks/noise_accuracy.py [--ranks 64 256 1024] [--scaling sublinear] [--json FILE]

Float32 features (R, 1.5 R) of given singular values, by both routes: that of the CPU (``eigh`` of a Gram
matrix, in float32 with a second one in float64 for weak directions), and that of other devices (matrix
products alone, run here on the CPU). Shown are the error of the noise's energy and the Frobenius norm of the
error of its covariance, in percent.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options, write
from fanoise_lightning.noise import NoiseShape, noise_shape

TOLERANCE = 0.1  # percent, as in tests/test_noise_accuracy.py
ROUTES = ("eigh", "products")
SPECTRA = [
    "i^-0", "i^-0.5", "i^-1", "i^-2", "spike 30 %", "spike 90 %", "spike 99 %", "cone 90 %", "cone 99 %",
    "rank R/4", "repeated rows",
]  # fmt: skip


def singular_values(name: str, rank: int) -> Tensor:
    """A power of i, or a first direction with a share of the energy above a flat or an i^-0.5 tail."""
    index = torch.arange(1, rank + 1, dtype=torch.float64)
    kind, _, share = name.partition(" ")
    if kind == "rank":
        return (index <= rank // 4).double()
    if kind.startswith("i^"):
        return index ** float(kind.removeprefix("i^"))
    top = float(share.removesuffix(" %")) / 100
    tail = index[:-1] ** (-0.5 if kind == "cone" else 0.0)
    return torch.cat([index[:1] * math.sqrt(top), tail / tail.norm() * math.sqrt(1 - top)])


def make_features(name: str, rank: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (rank, dim))
    if name == "repeated rows":
        return right.T[: rank // 4].repeat(4, 1).float()
    left, right = (torch.linalg.qr(x)[0] for x in (left, right))
    return ((left * singular_values(name, rank)) @ right.T).float()


def exact_covariance(features: Tensor, scaling: str) -> Tensor:
    """V diag(S^2) V^T, as the formula stands."""
    _, s, v = torch.linalg.svd(features.double(), full_matrices=False)
    scale = s / s.mean() if scaling == "linear" else s.sqrt() / s.sqrt().mean()
    return (v.T * scale.square()) @ v


def covariance(shape: NoiseShape) -> Tensor:
    factors = [factor.double() for factor in shape.factors]
    factor = torch.linalg.multi_dot(factors) if len(factors) > 1 else factors[0]
    return factor.T @ factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--scaling", choices=("linear", "sublinear"), default="sublinear")
    add_options(parser)
    options = parser.parse_args()
    figures = []
    print(f"torch {torch.__version__}, {options.scaling} noise, errors in %: energy, covariance")
    print(f"{'spectrum':15} {'R':>5}" + "".join(f"   {route:>19}" for route in ROUTES))
    for name in SPECTRA:
        for rank in options.ranks:
            features = make_features(name, rank, 3 * rank // 2)
            expected = exact_covariance(features, options.scaling)
            line = f"{name:15} {rank:5d}"
            for route in ROUTES:
                with patch("fanoise_lightning.spectrum._by_products", lambda x, r=route: r == "products"):
                    actual = covariance(noise_shape(features, options.scaling))
                energy = 100 * (actual.trace() / expected.trace() - 1).item()
                error = 100 * ((actual - expected).norm() / expected.norm()).item()
                line += f"   {energy:+9.5f} {error:9.5f}"
                label = f"error of the covariance by {route}, {name}, R = {rank}"
                figures.append(Figure(label, error, "%", error, error, at_most=TOLERANCE))
            print(line, flush=True)
    write(figures, options.json)


if __name__ == "__main__":
    main()
