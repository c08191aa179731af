from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning.figures.gradient_bias import gradient_bias


def unit(seed: int, rows: int = 6, dim: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=1)


def autograd_gradient(query: Tensor, keys: Tensor, temperature: float) -> Tensor:
    query = query.clone().requires_grad_()
    loss = F.cross_entropy(query @ keys.T / temperature, torch.arange(len(query)), reduction="sum")
    return torch.autograd.grad(loss, query)[0]


def test_the_simulation_is_that_of_autograd_and_agrees_with_the_prediction() -> None:
    """Independent noise, without antithetic pairs: both means agree within their standard errors."""
    query, keys, temperature, alpha = unit(0), unit(1), 0.5, 0.2
    _, numbers = gradient_bias(query, keys, temperature, alphas=[alpha], draws=2000)
    clean = autograd_gradient(query, keys, temperature)
    generator = torch.Generator().manual_seed(5)
    samples = []
    for _ in range(20_000):
        noise = alpha / math.sqrt(5) * torch.randn(6, 5, generator=generator, dtype=torch.float64)
        weights = (query @ (keys + noise).T / temperature).softmax(dim=1)  # closed form: faster than autograd
        samples.append((weights @ (keys + noise) - keys - noise) / temperature - clean)
    bias = torch.stack(samples)
    one = keys + noise
    assert torch.allclose(samples[-1] + clean, autograd_gradient(query, one, temperature))
    mean, scale = bias.mean(dim=0), clean.norm()
    # along its own direction, to first order in the error
    size = mean.norm() / scale
    spread = (bias * mean / mean.norm()).sum(dim=(1, 2)).std() / math.sqrt(len(bias)) / scale
    error = math.hypot(numbers["error"][0], spread.item())
    # the norm of a mean has a bias of its own, of the size of the error of the whole vector
    whole = bias.std(dim=0).norm().item() / math.sqrt(len(bias)) / scale.item()
    assert abs(numbers["simulated"][0] - size.item()) < 4 * error + whole**2 / size.item()
    assert abs(numbers["simulated"][0] - numbers["predicted"][0]) < 4 * numbers["error"][0] + 0.02 * size


def test_the_paper_is_right_where_the_softmax_is_diffuse() -> None:
    _, numbers = gradient_bias(unit(0, 200, 50), unit(1, 200, 50), temperature=20.0, alphas=[0.5], draws=2)
    assert numbers["diffuse"] == pytest.approx(numbers["predicted"], rel=0.02)


def test_the_bias_grows_with_the_square_of_alpha() -> None:
    figure, numbers = gradient_bias(unit(0), unit(1), temperature=1.0, alphas=[0.1, 0.2], draws=20)
    assert numbers["predicted"][1] == pytest.approx(4 * numbers["predicted"][0])
    assert numbers["simulated"][1] == pytest.approx(4 * numbers["simulated"][0], rel=0.3)
    assert numbers["alphas"] == [0.1, 0.2]
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert list(figure.axes[0].lines[0].get_ydata()) == numbers["predicted"]


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape \(B, D\), B at least 2, got \(6, 5\) and \(4, 5\)"):
        gradient_bias(unit(0), unit(1, rows=4), 1.0)
    with pytest.raises(ValueError, match="B at least 2"):  # nothing to contrast with, and no gradient
        gradient_bias(unit(0, rows=1), unit(1, rows=1), 1.0)
    with pytest.raises(ValueError, match="`temperature` must be positive and finite, got 0"):
        gradient_bias(unit(0), unit(1), 0.0)
    with pytest.raises(ValueError, match="`alphas` must be positive and finite, got -1"):
        gradient_bias(unit(0), unit(1), 1.0, alphas=[-1])
    with pytest.raises(ValueError, match="`draws` must be at least 2, for a standard error, got 1"):
        gradient_bias(unit(0), unit(1), 1.0, draws=1)
