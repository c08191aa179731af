"""What noise on the keys does to the gradient of InfoNCE: simulated, and as theory predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fanoise_lightning._checks import check_positive
from fanoise_lightning.figures.style import tidy
from fanoise_lightning.theory import expected_query_gradient

__all__ = ["ALPHAS", "gradient_bias"]

ALPHAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


def gradient_bias(
    query: Tensor, keys: Tensor, temperature: float, alphas: Sequence[float] = ALPHAS, draws: int = 50
) -> tuple[Figure, dict[str, Any]]:
    """Draw the bias of the gradient: its mean under uniform noise on the keys, less the clean gradient.

    The gradients of all queries are one vector. The simulated bias is its part along the predicted one,
    in units of the clean gradient's norm. Where the points leave the line, second-order theory no longer
    holds, see :func:`~fanoise_lightning.theory.expected_query_gradient`.

    Args:
        query: (B, D) queries; row i should find row i of the keys.
        keys: (B, D) clean keys.
        temperature: of the loss.
        alphas: noise levels, each the root mean square norm of a noise row.
        draws: antithetic pairs of noise for each level.

    Returns:
        The figure, and its numbers: for each alpha the predicted and the simulated bias, the standard
        error of the latter, and the norm of the bias by the paper's formula for a diffuse softmax.

    Raises:
        ValueError: if the shapes differ, there is one query, an alpha or the temperature is not positive,
            or there are fewer than 2 draws.

    Example:
        >>> unit = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> _, numbers = gradient_bias(unit, unit, temperature=1.0, alphas=[0.1], draws=2)
        >>> numbers["alphas"]
        [0.1]
    """
    if query.ndim != 2 or query.shape != keys.shape or len(query) < 2:
        shapes = f"{tuple(query.shape)} and {tuple(keys.shape)}"
        raise ValueError(f"`query` and `keys` must have one shape (B, D), B at least 2, got {shapes}")
    check_positive("temperature", temperature)
    for alpha in alphas:
        check_positive("alphas", alpha)
    if draws < 2:
        raise ValueError(f"`draws` must be at least 2, for a standard error, got {draws}")
    query, keys = (x.detach().double().cpu() for x in (query, keys))
    clean = _gradients(query, keys, temperature)
    scale = clean.norm()
    generator = torch.Generator().manual_seed(0)
    names = ("alphas", "predicted", "diffuse", "simulated", "error")
    numbers: dict[str, Any] = {name: [] for name in names}
    for alpha in alphas:
        std = alpha / math.sqrt(keys.shape[1])
        bias = _predicted(query, keys, temperature, std) - clean
        along = bias / (bias.norm() * scale)
        samples = []
        for _ in range(draws):
            noise = std * torch.randn(keys.shape, generator=generator, dtype=keys.dtype)
            both = [_gradients(query, keys + sign * noise, temperature) for sign in (1, -1)]
            # odd orders, which have no mean, cancel in the pair
            samples.append(((sum(both) / 2 - clean) * along).sum())
        simulated = torch.stack(samples)
        numbers["alphas"].append(float(alpha))
        numbers["predicted"].append((bias.norm() / scale).item())
        numbers["diffuse"].append((std**2 / temperature**2 * query.norm() / scale).item())
        numbers["simulated"].append(simulated.mean().item())
        numbers["error"].append((simulated.std() / math.sqrt(draws)).item())
    size = f"{len(query)} × {keys.shape[1]}"
    title = f"Bias of the query's gradient: {size}, temperature {temperature:.3g}"
    return _draw(numbers, title), numbers


def _gradients(query: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """The gradient (B, D) of InfoNCE with respect to each query."""
    weights = (query @ keys.T / temperature).softmax(dim=1)
    return (weights @ keys - keys) / temperature


def _predicted(query: Tensor, keys: Tensor, temperature: float, std: float) -> Tensor:
    rows = [expected_query_gradient(q, keys, i, temperature, std) for i, q in enumerate(query)]
    return torch.stack(rows)


def _draw(numbers: dict[str, Any], title: str) -> Figure:
    figure = Figure(figsize=(6.4, 4), layout="constrained", dpi=110)
    ax = figure.subplots()
    alphas, errors = numbers["alphas"], [1.96 * error for error in numbers["error"]]
    ax.plot(alphas, numbers["predicted"], color="#000000", lw=1.4, label="predicted, second order")
    ax.plot(alphas, numbers["diffuse"], color="#888888", lw=1.2, ls="--", label="the paper's, diffuse")
    ax.errorbar(alphas, numbers["simulated"], errors, fmt="o", color="#0072B2", capsize=3, markersize=4,
                label="simulated, 95 %")  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log", nonpositive="clip")
    ax.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
    ax.minorticks_off()
    ax.set_xlabel("alpha of uniform noise on the keys")
    ax.set_ylabel("bias relative to the clean gradient")
    ax.set_title(title, fontsize=10)
    tidy(ax)
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return figure
