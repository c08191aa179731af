"""What theory predicts about noise, beside a simulation.

    python benchmarks/theory.py [--rows 1000] [--dim 1536] [--draws 8]

Features (B, D) of known singular values get noise, several times, and so do the keys of a query. Shown
are means over the draws. It takes about three minutes.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning import feature_noise
from fanoise_lightning.spectrum import decompose, singular_values
from fanoise_lightning.theory import (
    expected_query_gradient,
    noise_energy,
    predicted_overlaps,
    predicted_singular_values,
    weyl_bound,
)

LAWS = ("uniform", "sublinear", "linear")
MULTIPLES = (8.0, 4.0, 2.5, 2.0, 1.7, 1.5, 1.3, 1.1, 0.9, 0.5)  # of the threshold
BLOCKS = ((0, 0.01), (0.01, 0.1), (0.1, 0.4), (0.4, 0.7), (0.7, 1.0))  # of directions, strongest first


def make_features(values: Tensor, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Features (B, D) with these singular values (K,), and their right singular vectors (K, D)."""
    count = len(values)
    left, right = (torch.linalg.qr(torch.randn(n, count, dtype=torch.float64))[0] for n in (rows, dim))
    return (left * values) @ right.T, right.T


def power_law(exponent: float, rows: int, dim: int) -> Tensor:
    """All R singular values, those of rows of unit length."""
    values = torch.arange(1, min(rows, dim) + 1, dtype=torch.float64) ** -exponent
    return values * math.sqrt(rows) / values.norm()


def simulate(features: Tensor, right: Tensor, alpha: float, draws: int) -> tuple[Tensor, Tensor]:
    """Mean singular values (K,) of the features with uniform noise, and mean |<v_i, v~_i>| (K,)."""
    means = [torch.zeros(len(right), dtype=torch.float64) for _ in range(2)]
    for _ in range(draws):
        values, vectors = decompose(features + feature_noise(features, alpha, "uniform"))
        means[0] += values[: len(right)] / draws
        means[1] += (vectors[: len(right)] * right).sum(1).abs() / draws
    return means[0], means[1]


def spectra(rows: int, dim: int, draws: int, alpha: float = 0.5) -> None:
    """One block with a few strong directions, as the theorem wants it, one with a full spectrum."""
    noise_rms = alpha / math.sqrt(dim)
    threshold = noise_rms * (rows * dim) ** 0.25
    full = power_law(0.7, rows, dim)
    chosen = [i for i in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if i <= len(full)]
    few = threshold * torch.tensor(MULTIPLES, dtype=torch.float64)
    cases = [
        ("few strong directions", few, range(1, len(few) + 1)),
        ("a full spectrum, s_i ~ i^-0.7, rows of unit length", full, chosen),
    ]
    for title, clean, shown in cases:
        features, right = make_features(clean, rows, dim)
        values, overlaps = simulate(features, right, alpha, draws)
        columns = [
            clean / threshold,
            clean,
            predicted_singular_values(clean, noise_rms, rows, dim),
            values,
            predicted_overlaps(clean, noise_rms, rows, dim),
            overlaps,
        ]
        print(f"\nuniform noise, alpha {alpha}: {title}")
        print(f"{'':5}{'s_i /':>10} {'':10}{'noisy s_i':>10} {'':10}{'overlap':>10}")
        names = ("threshold", "s_i", "theory", "simulated", "theory", "simulated")
        print(f"{'i':>4} " + " ".join(f"{name:>10}" for name in names))
        for i in shown:
            print(f"{i:4d} " + " ".join(f"{column[i - 1]:10.3f}" for column in columns))


def amounts(rows: int, dim: int, draws: int) -> None:
    """Energy of a noise row and largest singular value of the noise, over alpha, with energy="paper"."""
    print("\nE||noise row||^2 / alpha^2, and ||E||_2 / alpha with its bound; s_i ~ i^-0.7")
    print(f"{'B':>5} {'law':>10} {'theory':>10} {'simulated':>10} {'bound':>10} {'simulated':>10}")
    for count in (rows // 8, rows, 2 * dim):
        values = power_law(0.7, count, dim)
        features, _ = make_features(values, count, dim)
        for law in LAWS:
            noise = [feature_noise(features, 1.0, law) for _ in range(draws)]
            row = (
                noise_energy(values, law, count, dim),
                sum(x.square().sum(1).mean().item() for x in noise) / draws,
                weyl_bound(values, law, count, dim),
                sum(singular_values(x)[0].item() for x in noise) / draws,
            )
            print(f"{count:5d} {law:>10} " + " ".join(f"{x:10.3f}" for x in row))


def tails(rows: int, dim: int, draws: int) -> None:
    """How much of each block of directions is left in the same block of the noisy features."""
    features, right = make_features(power_law(0.7, rows, dim), rows, dim)
    edges = [(round(low * len(right)), round(high * len(right))) for low, high in BLOCKS]
    print('\nOverlap of blocks of directions, energy="constant"; s_i ~ i^-0.7. Chance: any directions')
    print(f"{'':16}" + " ".join(f"{f'{low + 1}-{high}':>9}" for low, high in edges))
    for name, space in (("chance, D", dim), ("chance, R", len(right))):
        print(f"{name:16}" + " ".join(f"{math.sqrt((high - low) / space):9.3f}" for low, high in edges))
    for alpha in (0.1, 0.5, 1.0):
        for law in LAWS:
            kept = torch.zeros(len(edges), dtype=torch.float64)
            for _ in range(draws):
                _, vectors = decompose(features + feature_noise(features, alpha, law, energy="constant"))
                blocks = [vectors[a:b] @ right[a:b].T for a, b in edges]
                kept += torch.stack([x.square().sum() / len(x) for x in blocks]) / draws
            print(f"{alpha:4} {law:>10} " + " ".join(f"{x:9.3f}" for x in kept.sqrt()))


def make_keys(rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """A unit query, and unit keys of cosine 0.2 +- 0.1 with it; the first, with 0.6, is its own."""
    query = F.normalize(torch.randn(dim), dim=0)
    cosines = (0.2 + 0.1 * torch.randn(rows, 1)).index_fill(0, torch.tensor(0), 0.6)
    across = torch.randn(rows, dim)
    across = F.normalize(across - (across @ query)[:, None] * query, dim=1)
    return query, cosines * query + (1 - cosines**2).sqrt() * across


def mean_shift(query: Tensor, keys: Tensor, temperature: float, noise_std: float, draws: int) -> Tensor:
    """What noise on the keys adds to the gradient of the query by autograd, (draws, D)."""

    def gradient(keys: Tensor) -> Tensor:
        leaf = query.clone().requires_grad_()
        F.cross_entropy((keys @ leaf / temperature)[None], torch.tensor([0])).backward()
        assert leaf.grad is not None
        return leaf.grad

    shifts = []
    for _ in range(draws):  # in pairs: what is of odd order in the noise cancels
        noise = noise_std * torch.randn_like(keys)
        shifts.append((gradient(keys + noise) + gradient(keys - noise)) / 2 - gradient(keys))
    return torch.stack(shifts)


def gradients(rows: int, dim: int, draws: int) -> None:
    """What noise on the keys adds to the mean gradient of a query."""
    query, keys = make_keys(rows, dim)
    print("\nMean change of a query's gradient by uniform noise on the keys, % of the clean gradient")
    print(f"{'':39}{'along the query':^40}{'along the rest of the gradient':^30}")
    both = ("theory", "simulated", "+-")
    names = ("tau", "alpha", "sigma", "p_l", "diffuse", *both, *both)
    print(" ".join(f"{name:>9}" for name in names))
    for temperature in (0.02, 0.07, 0.2):
        own = (keys @ query / temperature).softmax(0)[0].item()
        clean = expected_query_gradient(query, keys, 0, temperature, 0.0)
        rest = F.normalize(clean - (clean @ query) * query, dim=0)
        unit = clean.norm() / 100
        for alpha in (0.1, 0.5, 1.0, 2.0):
            std = alpha / math.sqrt(dim)
            shift = expected_query_gradient(query, keys, 0, temperature, std) - clean
            drawn = mean_shift(query, keys, temperature, std, draws)
            row = [temperature, alpha, std / temperature, own, (std / temperature) ** 2 / unit.item()]
            for direction in (query, rest):
                along = drawn @ direction / unit
                error = along.std().item() / math.sqrt(draws)
                row += [(shift @ direction / unit).item(), along.mean().item(), error]
            print(" ".join(f"{x:9.2f}" if i != 3 else f"{x:9.3f}" for i, x in enumerate(row)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000, help="B")
    parser.add_argument("--dim", type=int, default=1536, help="D")
    parser.add_argument("--draws", type=int, default=8, help="of noise; 25 times as many for gradients")
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, B {options.rows}, D {options.dim}, {options.draws} draws")
    for part, factor in ((spectra, 1), (amounts, 1), (tails, 1), (gradients, 25)):
        part(options.rows, options.dim, factor * options.draws)


if __name__ == "__main__":
    main()
