"""The mean gradient of InfoNCE under noise on its keys, against autograd and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning import InfoNCE
from fanoise_lightning.noise import noise_shape
from fanoise_lightning.theory import expected_query_gradient


def problem(count: int = 12, dim: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    query, keys = torch.randn(dim).double(), torch.randn(count, dim).double()
    return F.normalize(query, dim=0), F.normalize(keys, dim=1)


def autograd(query: Tensor, keys: Tensor, positive: int, temperature: float) -> Tensor:
    """Gradients (N, D) of one query for N sets of keys (N, K, D)."""
    queries = query.expand(len(keys), -1).clone().requires_grad_()
    logits = torch.einsum("nd,nkd->nk", queries, keys) / temperature
    F.cross_entropy(logits, torch.full((len(keys),), positive), reduction="sum").backward()
    assert queries.grad is not None
    return queries.grad


def isotropic(keys: Tensor, noise_std: float) -> Tensor:
    return noise_std * torch.randn(60_000, *keys.shape, dtype=torch.float64)


def mean_shift(query: Tensor, keys: Tensor, temperature: float, noise: Tensor) -> list[Tensor]:
    """What noise (N, K, D) adds to the mean gradient, and the standard error, from N pairs of draws.

    In an antithetic pair the first order cancels: it has no mean, but nearly all of the variance.
    """
    gradients = [autograd(query, keys + sign * noise, 3, temperature) for sign in (1, -1)]
    shifts = sum(gradients) / 2 - autograd(query, keys[None], 3, temperature)
    return [shifts.mean(0), shifts.std(0) / math.sqrt(len(shifts))]


@pytest.mark.parametrize(("scale", "temperature"), [(1.0, 0.5), (1.0, 0.2), (2.0, 0.5)])
def test_the_expected_gradient_is_the_mean_of_autograd_within_its_error(scale, temperature):
    """The z-scores of all coordinates; sigma is 0.05."""
    query, keys = problem()
    query, noise_std = scale * query, 0.05 * temperature / scale
    mean, error = mean_shift(query, keys, temperature, isotropic(keys, noise_std))
    clean = expected_query_gradient(query, keys, 3, temperature, 0.0)
    expected = expected_query_gradient(query, keys, 3, temperature, noise_std) - clean
    assert ((mean - expected) / error).abs().max() < 4
    assert (expected / error).abs().max() > 20  # the error is small enough to tell


def test_without_noise_it_is_the_gradient_of_the_loss():
    query, keys = problem()
    leaf = query.clone().requires_grad_()
    others = torch.cat([keys[:3], keys[4:]])
    InfoNCE(0.07)(leaf[None], keys[3:4], others).backward()
    assert leaf.grad is not None
    assert torch.allclose(expected_query_gradient(query, keys, 3, 0.07, 0.0), leaf.grad, atol=1e-5)


def test_for_diffuse_weights_it_is_the_formula_of_the_paper():
    """-(1/tau) (k_l - kbar - (delta^2/tau) q), with 2000 keys and a high temperature."""
    query, keys = problem(2000, 32)
    noise_std, temperature = 0.1, 1.0
    paper = -(keys[3] - (keys @ query).softmax(0) @ keys - noise_std**2 * query)
    ours = expected_query_gradient(query, keys, 3, temperature, noise_std)
    assert (ours - paper).norm() < 0.005 * noise_std**2


def test_the_error_is_of_fourth_order():
    """Against Gauss-Hermite quadrature: two keys, whose weights depend on the difference of two logits.

    Exactly, E grad = -(1/tau) (k_l - sum_j E[p_j] k_j - (delta^2/tau) sum_j E[p_j (1 - p_j)] q).
    """
    query, keys = problem(2)
    temperature = 0.5
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(60))
    weights = weights / weights.sum()
    errors = []
    for noise_std in (0.1, 0.05):
        gap = (keys[0] - keys[1]) @ query + noise_std * math.sqrt(2) * nodes
        first = torch.sigmoid(gap / temperature)
        p = torch.stack([weights @ first, weights @ (1 - first)])
        spread = 2 * (weights @ (first * (1 - first)))
        exact = -(keys[0] - p @ keys - noise_std**2 / temperature * spread * query) / temperature
        second_order = expected_query_gradient(query, keys, 0, temperature, noise_std)
        errors.append((second_order - exact).norm().item())
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)


def test_at_a_low_temperature_second_order_fails():
    """Sigma = 2: weights cannot leave 0 and 1, but the expansion can."""
    query, keys = problem()
    mean, error = mean_shift(query, keys, 0.05, isotropic(keys, 0.1))
    clean = expected_query_gradient(query, keys, 3, 0.05, 0.0)
    expected = expected_query_gradient(query, keys, 3, 0.05, 0.1) - clean
    assert ((mean - expected) / error).abs().max() > 20


def test_the_pull_does_not_reach_a_query_that_was_normalised():
    """A query on the sphere has no gradient along itself: only the reweighting of the keys is left."""
    query, keys = problem()
    raw = (3 * query).requires_grad_()
    gradient = expected_query_gradient(query, keys, 3, 0.2, 0.02)
    F.normalize(raw, dim=0).backward(gradient)

    p = (keys @ query / 0.2).softmax(0)
    reweighted = p + (0.02 / 0.2) ** 2 * p * (p.square().sum() - p)
    other = (3 * query).requires_grad_()
    F.normalize(other, dim=0).backward((reweighted @ keys - keys[3]) / 0.2)
    assert raw.grad is not None
    assert torch.allclose(raw.grad, other.grad)
    assert not torch.allclose(gradient, (reweighted @ keys - keys[3]) / 0.2)


def test_shaped_noise_pulls_along_its_covariance_and_not_along_the_query():
    """With C in place of delta^2 I: C q for delta^2 q, and q C q^T / tau^2 for sigma^2."""
    query, keys = problem()
    temperature, alpha = 0.5, 0.05
    _, values, vectors = torch.linalg.svd(keys, full_matrices=False)
    covariance = alpha**2 / keys.shape[1] * (vectors.T * (values / values.mean()) ** 2) @ vectors
    rows = keys.new_empty(60_000 * len(keys), keys.shape[1])
    noise = noise_shape(keys, "linear").sample(rows, alpha).view(60_000, *keys.shape)
    mean, error = mean_shift(query, keys, temperature, noise)

    p = (keys @ query / temperature).softmax(0)
    weights = (query @ covariance @ query) / temperature**2 * p * (p.square().sum() - p)
    pull = covariance @ query / temperature * (p * (1 - p)).sum()
    expected = (weights @ keys + pull) / temperature
    assert ((mean - expected) / error).abs().max() < 4
    tangential = expected - (expected @ query) * query
    without_pull = weights @ keys / temperature
    assert (tangential - without_pull + (without_pull @ query) * query).norm() > 20 * error.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.ones(3)}, r"\(D,\) and \(K, D\), got \(3,\) and \(12, 6\)"),
        ({"keys": torch.ones(0, 6)}, r"got \(6,\) and \(0, 6\)"),
        ({"positive": 12}, "row of the 12 keys, from 0, got 12"),
        ({"positive": -1}, "got -1"),
        ({"temperature": 0.0}, "`temperature` must be positive and finite, got 0.0"),
        ({"noise_std": math.nan}, "`noise_std` must be finite and at least 0, got nan"),
    ],
)
def test_wrong_gradients_are_refused(change, message):
    query, keys = problem()
    arguments = {"query": query, "keys": keys, "positive": 0, "temperature": 0.1, "noise_std": 0.1}
    with pytest.raises(ValueError, match=message):
        expected_query_gradient(**(arguments | change))
