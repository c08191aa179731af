"""Scaling laws that are functions of the singular values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fanoise_lightning import feature_noise
from fanoise_lightning.laws import law_name
from fanoise_lightning.noise import NoiseShape, law_total, moment_shape, noise_shape

NAMED: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": torch.ones_like,
    "linear": lambda s: 3 * s,
    "sublinear": lambda s: 0.1 * s.sqrt(),
}
SHAPES = [(8, 20), (30, 12)]


def features(rows: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=generator) * torch.logspace(0, -2, dim)


def covariance(shape: NoiseShape) -> Tensor:
    factor = torch.eye(shape.dim)
    for part in reversed(shape.factors):
        factor = part @ factor
    return factor.T @ factor


def by_hand(x: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """V diag(S^2) V^T, with S the weights over their mean: the published formula."""
    _, values, right = torch.linalg.svd(x, full_matrices=False)
    weights = weigh(values).to(values)
    scale = weights / weights.mean()
    return right.T @ torch.diag(scale.square()) @ right


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["linear", "sublinear"])
@pytest.mark.parametrize("energy", ["paper", "constant"])
def test_a_function_that_equals_a_named_law_has_its_covariance(shape, name, energy):
    x = features(*shape)
    expected = covariance(noise_shape(x, name, energy))
    torch.testing.assert_close(
        covariance(noise_shape(x, NAMED[name], energy)), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "law", [torch.log1p, torch.square, torch.ones_like, lambda s: (s > s.median()).float()]
)
def test_a_function_is_the_published_formula_with_its_weights(shape, law):
    x = features(*shape)
    torch.testing.assert_close(covariance(noise_shape(x, law)), by_hand(x, law), rtol=1e-4, atol=1e-5)
    assert law_total(x, law) == pytest.approx(by_hand(x, law).trace().item(), rel=1e-4)
    constant = covariance(noise_shape(x, law, "constant"))
    assert constant.trace() == pytest.approx(shape[1], rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shape_from_a_moment_is_that_of_the_features(shape):
    x = features(*shape).double()
    found = covariance(moment_shape(x.T @ x, torch.log1p, rank=min(shape), dtype=torch.float32))
    torch.testing.assert_close(found, by_hand(x.float(), torch.log1p), rtol=1e-3, atol=1e-5)


def test_samples_have_the_covariance_of_the_law():
    x, law, draws = features(8, 6), torch.log1p, 4000
    generator = torch.Generator().manual_seed(1)
    rows = torch.cat([feature_noise(x, 0.5, law, generator=generator) for _ in range(draws)]).double()
    expected = by_hand(x, law).double() * 0.25 / 6
    standard_error = ((expected.square() + expected.diagonal().outer(expected.diagonal())) / len(rows)).sqrt()
    assert ((rows.T @ rows / len(rows) - expected).abs() < 5 * standard_error).all()


def test_a_change_in_the_last_bit_of_the_features_does_not_change_the_noise():
    x = features(8, 20)
    one, other = (
        feature_noise(y, 0.5, torch.log1p, generator=torch.Generator().manual_seed(0))
        for y in (x, x * (1 + 1e-7))
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (
            lambda s: s[:-1],
            r"must return a tensor \(8,\), one weight for each singular value, got shape \(7,\)",
        ),
        (lambda s: 1.0, r"got a float"),
        (lambda s: -s, r"weights that are finite and at least 0, got -"),
        (lambda s: s / 0, r"weights that are finite and at least 0, got inf"),
        (lambda s: 0 * s, r"returned the weight 0 for every direction"),
    ],
)
def test_what_is_not_a_weight_for_each_value_is_refused(law, message):
    with pytest.raises(ValueError, match=r"the scaling law .*<lambda>.*" + message):
        feature_noise(features(8, 20), 0.5, law)


def test_an_object_that_is_a_law_is_called_by_its_class():
    assert law_name(torch.nn.Softplus()) == "torch.nn.modules.activation.Softplus"


@pytest.mark.parametrize("scaling", ["cubic", None, 0.5])
def test_a_law_is_a_known_name_or_a_function(scaling: Any):
    with pytest.raises(ValueError, match=r"`scaling` must be one of 'uniform', .*, or a function"):
        feature_noise(features(8, 20), 0.5, scaling)


def test_features_that_are_not_finite_have_no_spectrum():
    x = features(8, 20)
    x[0, 0] = math.nan
    with pytest.raises(torch.linalg.LinAlgError):
        noise_shape(x, torch.log1p)
