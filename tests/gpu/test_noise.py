"""The noise on the device, against a singular value decomposition in float64 on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.noise_accuracy import covariance, exact_covariance, make_features
from fanoise_lightning import feature_noise, singular_values
from fanoise_lightning.noise import NoiseShape, law_total, moment_shape, noise_shape
from fanoise_lightning.spectrum import second_moment

SHAPES = [(1, 8), (2, 3), (17, 33), (33, 17), (64, 64), (63, 257)]


def features(rows: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows * dim)
    return F.normalize(torch.randn(rows, dim, generator=generator) * torch.linspace(1, 0.1, dim), dim=1)


def on_cpu(shape: NoiseShape) -> Tensor:
    return covariance(shape.to(torch.device("cpu")))


def distance(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("scaling", ["linear", "sublinear"])
@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_the_root_is_that_of_the_float64_svd(rows, dim, scaling, device):
    x = features(rows, dim)
    expected = exact_covariance(x, scaling)
    assert distance(on_cpu(noise_shape(x.to(device), scaling)), expected) < 1e-3
    assert law_total(x.to(device), scaling).item() == pytest.approx(expected.trace().item(), rel=1e-3)


@pytest.mark.parametrize("name", ["i^-0", "i^-1", "spike 99 %", "cone 99 %", "rank R/4", "repeated rows"])
def test_ties_and_weak_directions_do_not_break_the_root(name, device):
    x = make_features(name, 64, 96)
    assert distance(on_cpu(noise_shape(x.to(device))), exact_covariance(x, "sublinear")) < 2e-3


@pytest.mark.parametrize("scaling", ["linear", "sublinear"])
def test_the_root_of_a_second_moment_is_that_of_the_float64_svd(scaling, device):
    x = features(63, 40)
    moment = second_moment(x.to(device))
    assert distance(on_cpu(moment_shape(moment, scaling)), exact_covariance(x, scaling)) < 1e-3


def test_singular_values_are_those_of_the_float64_svd(device):
    x = features(33, 65)
    found = singular_values(x.to(device)).cpu().double()
    torch.testing.assert_close(found, torch.linalg.svdvals(x.double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_drawn_noise_has_the_covariance_of_the_formula(dtype, device):
    rows, alpha, draws = 24, 0.5, 400
    x = features(rows, 16).to(dtype)
    generator = torch.Generator(device).manual_seed(0)
    noise = torch.cat([feature_noise(x.to(device), alpha, generator=generator) for _ in range(draws)])
    assert noise.dtype == dtype
    assert noise.device.type == device.type
    noise = noise.double().cpu()
    expected = exact_covariance(x.float(), "sublinear") * (alpha**2 / 16)
    # each entry of a sample covariance deviates by at most the root of 2 / n of the largest variance
    error = (noise.T @ noise / len(noise) - expected).abs().max()
    assert error < 5 * math.sqrt(2 / len(noise)) * expected.diagonal().max()


def test_tf32_does_not_reach_the_root(device):
    x = make_features("i^-1", 64, 96).to(device)
    expected = on_cpu(noise_shape(x))
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            assert torch.equal(on_cpu(noise_shape(x)), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_broken_features_give_nan_or_an_error_and_never_a_finite_lie(device):
    x = features(8, 16)
    x[0, 0] = math.nan
    if device.type == "cpu":
        with pytest.raises(ValueError, match="not finite"):
            feature_noise(x)
    else:
        assert feature_noise(x.to(device)).isnan().any()
