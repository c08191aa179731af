"""The shape of the noise against an SVD in float64, by the route of the CPU and by that of other devices."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fanoise_lightning import feature_noise, gram, spectrum
from fanoise_lightning.noise import (
    NoiseShape,
    law_total,
    moment_shape,
    moment_total,
    noise_shape,
    row_norm,
)
from fanoise_lightning.spectrum import second_moment

LAWS = ["linear", "sublinear"]
SHAPES = [(64, 96), (96, 64), (64, 64), (128, 128), (160, 128), (256, 384)]


def power_law(exponent: float) -> Callable[[int], Tensor]:
    return lambda rank: torch.arange(1, rank + 1, dtype=torch.float64) ** -exponent


def with_top(share: float, tail: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """A first direction with this share of the energy, above a tail."""

    def values(rank: int) -> Tensor:
        rest = tail(rank - 1)
        return torch.cat([torch.tensor([share]).double().sqrt(), rest / rest.norm() * math.sqrt(1 - share)])

    return values


def low_rank(rank: int) -> Tensor:
    return torch.cat([torch.ones(rank // 4), torch.zeros(rank - rank // 4)]).double()


SPECTRA = {
    "flat": power_law(0),
    "i^-0.5": power_law(0.5),
    "i^-1": power_law(1),
    "i^-2": power_law(2),
    "spike of 30 %": with_top(0.3, power_law(0)),
    "spike of 90 %": with_top(0.9, power_law(0)),
    "spike of 99 %": with_top(0.99, power_law(0)),
    "cone of 99 %": with_top(0.99, power_law(0.5)),
    "rank R/4": low_rank,
}


def features(name: str, rows: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if name == "repeated rows":
        return normal(rows // 4, dim).repeat(4, 1).to(dtype)
    rank = min(rows, dim)
    left, right = (torch.linalg.qr(normal(size, rank))[0] for size in (rows, dim))
    return ((left * SPECTRA[name](rank)) @ right.T).to(dtype)


def exact(x: Tensor, scaling: str) -> Tensor:
    """V diag(S^2) V^T of the features as they are, (D, D)."""
    _, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    scale = s / s.mean() if scaling == "linear" else s.sqrt() / s.sqrt().mean()
    return (v.T * scale.square()) @ v


def covariance(shape: NoiseShape) -> Tensor:
    factor = shape.factors[0].double()
    for right in shape.factors[1:]:
        factor = factor @ right.double()
    return factor.T @ factor


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """In energy and in the Frobenius norm."""
    assert actual.trace().item() == pytest.approx(expected.trace().item(), rel=tolerance)
    assert (actual - expected).norm() < tolerance * expected.norm()


@pytest.fixture(params=["eigh", "products"])
def route(request, monkeypatch) -> str:
    monkeypatch.setattr(spectrum, "_by_products", lambda x: request.param == "products")
    return request.param


@pytest.mark.parametrize(("rows", "dim"), SHAPES)
@pytest.mark.parametrize("name", [*SPECTRA, "repeated rows"])
def test_the_shape_is_that_of_the_svd(name, rows, dim, route):
    x = features(name, rows, dim)
    for scaling in LAWS:
        expected = exact(x, scaling)
        assert_close(covariance(noise_shape(x, scaling)), expected, 1e-3)
        assert law_total(x, scaling).item() == pytest.approx(expected.trace().item(), rel=1e-3)
        constant = expected * (dim / expected.trace())
        assert_close(covariance(noise_shape(x, scaling, "constant")), constant, 1e-3)


@pytest.mark.parametrize(("rows", "dim"), [(64, 96), (96, 64), (384, 256)])
@pytest.mark.parametrize("name", [*SPECTRA, "repeated rows"])
def test_the_shape_from_a_second_moment_is_that_of_the_svd(name, rows, dim, route):
    x = features(name, rows, dim)
    moment, rank = second_moment(x), min(rows, dim)
    assert moment.dtype == torch.float64
    for scaling in LAWS:
        expected = exact(x, scaling)
        assert_close(covariance(moment_shape(moment, scaling, rank=rank)), expected, 2e-3)
        total = moment_total(moment, rank, scaling)
        assert total.item() == pytest.approx(expected.trace().item(), rel=2e-3)


@pytest.mark.parametrize("name", ["i^-1", "spike of 99 %"])
def test_the_total_is_right_for_a_batch_of_1024(name, route):
    def reflect(x: Tensor) -> Tensor:  # an orthogonal matrix that costs no decomposition
        normal = torch.randn(len(x), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        normal = normal / normal.norm()
        return x - 2 * normal @ (normal.T @ x)

    s = SPECTRA[name](1024)
    x = reflect(reflect(torch.diag(s)).T).float()
    assert law_total(x, "sublinear").item() == pytest.approx(
        (s.sum() / s.sqrt().mean() ** 2).item(), rel=1e-3
    )


@pytest.mark.parametrize("scale", [1e-12, 1e-8, 1e8, 1e12])
@pytest.mark.parametrize(("rows", "dim"), [(64, 96), (96, 64)])
@pytest.mark.parametrize("energy", ["paper", "constant"])
def test_the_scale_of_the_features_does_not_matter(scale, rows, dim, energy, route):
    x = features("i^-1", rows, dim)
    for scaling in LAWS:
        expected = covariance(noise_shape(x, scaling, energy))
        assert_close(covariance(noise_shape(scale * x, scaling, energy)), expected, 1e-4)
        total = law_total(scale * x, scaling)
        assert total.item() == pytest.approx(exact(x, scaling).trace().item(), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e-22, 1e-21, 1e18, 1e25, 1e36])
@pytest.mark.parametrize("energy", ["paper", "constant"])
@pytest.mark.parametrize(("rows", "dim"), [(64, 96), (128, 160), (160, 128)])
def test_features_whose_squares_overflow_or_vanish_get_the_right_noise(scale, energy, rows, dim, route):
    x = features("i^-1", rows, dim)
    for scaling in LAWS:
        expected = exact(x, scaling)
        total = expected.trace().item() if energy == "paper" else dim
        assert_close(
            covariance(noise_shape(scale * x, scaling, energy)), expected * (total / expected.trace()), 1e-3
        )
        assert law_total(scale * x, scaling).item() == pytest.approx(expected.trace().item(), rel=1e-3)
        moment = second_moment(scale * x)
        constant = expected * (dim / expected.trace())
        assert_close(covariance(moment_shape(moment, scaling, dim)), constant, 1e-3)
        assert moment_total(moment, min(rows, dim), scaling).item() == pytest.approx(
            expected.trace().item(), rel=1e-3
        )


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_the_scale_of_float64_features_does_not_matter(scale, route):
    x = features("i^-1", 64, 96, torch.float64)
    for scaling in LAWS:
        assert_close(covariance(noise_shape(scale * x, scaling)), exact(x, scaling), 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "dim"), [(512, 32), (1000, 100), (64, 600)])
@pytest.mark.parametrize("kind", ["rows", "columns", "two rows"])
def test_features_that_are_all_alike_get_the_right_noise(kind, rows, dim, dtype, route):
    """Their products are long sums of equal terms, whose rounding errors add up."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    x = (
        x[:, :1].expand(rows, dim)
        if kind == "columns"
        else x[: len(kind.split())].repeat_interleave(rows // len(kind.split()), 0)
    )
    x = (x / x.norm(dim=1, keepdim=True)).to(dtype)
    for scaling in LAWS:
        expected = exact(x, scaling)
        assert_close(covariance(noise_shape(x, scaling)), expected, 2e-3)
        shape = moment_shape(second_moment(x), scaling, rank=min(x.shape))
        assert_close(covariance(shape), expected, 2e-3)


@pytest.mark.parametrize(("rows", "dim"), [(64, 96), (96, 64)])
@pytest.mark.parametrize("name", [name for name in SPECTRA if name != "rank R/4"])
def test_float64_features_get_float64_accuracy(name, rows, dim, route):
    x = features(name, rows, dim, torch.float64)
    for scaling in LAWS:
        shape = noise_shape(x, scaling)
        assert all(factor.dtype == torch.float64 for factor in shape.factors)
        assert_close(covariance(shape), exact(x, scaling), 1e-9 if route == "eigh" else 1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_shape_of_half_precision_features_is_that_of_their_svd(dtype, route):
    x = features("i^-1", 64, 96).to(dtype)
    for scaling in LAWS:
        assert_close(covariance(noise_shape(x, scaling)), exact(x, scaling), 1e-3)


@pytest.mark.parametrize(("rows", "dim"), [(64, 96), (96, 64), (256, 384)])
@pytest.mark.parametrize("name", ["rank R/4", "repeated rows"])
def test_directions_without_energy_get_no_noise(name, rows, dim, route):
    x = features(name, rows, dim)
    _, _, v = torch.linalg.svd(x.double())
    for scaling in LAWS:
        for shape in (noise_shape(x, scaling), moment_shape(second_moment(x), scaling)):
            noise = covariance(shape)
            null = v[min(rows, dim) // 4 :] if name == "rank R/4" else v[rows // 4 :]
            assert (null @ noise @ null.T).trace() < 1e-5 * noise.trace()


@pytest.mark.parametrize("scaling", ["uniform", *LAWS])
def test_a_second_moment_of_any_scale_is_scaled_to_the_total(scaling, route):
    x = features("i^-0.5", 20, 32)
    for scale in (1e-6, 1e6):
        shape = moment_shape(scale * second_moment(x), scaling, 7.0, dtype=torch.float32)
        if scaling != "uniform":  # whose total is D
            assert shape.factors[0].dtype == torch.float32
            assert_close(covariance(shape), exact(x, scaling) * (7 / exact(x, scaling).trace()), 1e-4)
    assert law_total(x, "uniform") == moment_total(second_moment(x), 20, "uniform") == 32


@pytest.mark.parametrize("scaling", LAWS)
@pytest.mark.parametrize("energy", ["paper", "constant"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0])
@pytest.mark.parametrize(("rows", "dim"), [(12, 20), (20, 12)])
def test_broken_features_never_get_finite_noise(bad, scaling, energy, rows, dim, route):
    x = features("i^-0.5", rows, dim)
    x[3, 4] = bad
    if bad == 0:
        x.zero_()

    def is_finite(shape: Callable[[], NoiseShape]) -> bool:
        try:
            return bool(shape().sample(x, 0.1).isfinite().all())
        except torch.linalg.LinAlgError:
            return False

    assert not is_finite(lambda: noise_shape(x, scaling, energy))
    assert not is_finite(lambda: moment_shape(second_moment(x), scaling, 1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("rows", "dim"), [(100, 120), (120, 100)])
def test_large_features_that_are_not_finite_are_refused(bad, rows, dim):
    x = features("i^-0.5", rows, dim)
    x[3, 4] = bad
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        noise_shape(x)


@pytest.mark.parametrize(("rows", "dim"), [(128, 160), (160, 128)])
@pytest.mark.parametrize(
    ("name", "dtype", "decomposed"),
    [
        ("i^-0.5", torch.float32, [(torch.float32, 128)]),
        ("i^-1", torch.float32, [(torch.float32, 128), (torch.float64, 29)]),  # 1/100 and less, squared
        ("i^-1", torch.float64, [(torch.float64, 128)]),
    ],
)
def test_float64_decomposes_what_float32_cannot_see(name, dtype, decomposed, rows, dim, monkeypatch):
    x, seen, eigh = features(name, rows, dim, dtype), [], torch.linalg.eigh

    def noted(matrix: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((matrix.dtype, len(matrix)))
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", noted)
    noise_shape(x)
    assert [(kind, pytest.approx(size, abs=1)) for kind, size in decomposed] == seen


@pytest.mark.parametrize("name", ["i^-0.5", "i^-2", "repeated rows"])
@pytest.mark.parametrize(("rows", "dim"), [(128, 160), (160, 128)])
def test_the_spectrum_in_float32_is_that_of_the_svd(name, rows, dim):
    x = features(name, rows, dim)
    squares, vectors = gram.spectrum_of(x)
    values = squares.sqrt().sort(descending=True)[0]
    exact_values = torch.linalg.svdvals(x.double())
    assert (values - exact_values).abs().max() < 2e-6 * exact_values[0]
    clear = exact_values > 1e-4 * exact_values[0]
    assert torch.allclose(values[clear], exact_values[clear], rtol=2e-3)
    assert (vectors.T @ vectors - torch.eye(128)).abs().max() < 1e-5


def test_a_folded_shape_draws_the_same_noise_from_one_matrix():
    x = features("i^-1", 64, 96)
    shape = noise_shape(x)
    folded = shape.folded()
    assert [tuple(factor.shape) for factor in folded.factors] == [(64, 96)]
    first, second = (s.sample(x, 1.0, torch.Generator().manual_seed(0)) for s in (shape, folded))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)
    assert folded.folded() is folded


@pytest.mark.parametrize("scaling", ["uniform", *LAWS])
@pytest.mark.parametrize("energy", ["paper", "constant"])
@pytest.mark.parametrize(("rows", "dim"), [(12, 20), (20, 12)])
def test_other_devices_never_make_the_host_wait(scaling, energy, rows, dim, monkeypatch):
    # The meta device has no values: whatever asks for one raises.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # it knows no such device
    x = torch.zeros(rows, dim, device="meta")
    assert feature_noise(x, 0.1, scaling, energy=energy, relative=True).shape == (rows, dim)
    total = moment_total(second_moment(x), rows, scaling) * law_total(x, scaling)
    assert moment_shape(second_moment(x), scaling, total).sample(x, total).shape == (rows, dim)


def test_relative_noise_grows_with_the_rows():
    x = features("i^-0.5", 12, 20)
    assert row_norm(x).item() == pytest.approx(x.square().sum(1).mean().sqrt().item())
    rows = 3 * torch.nn.functional.normalize(x)
    noise = feature_noise(rows, 0.2, relative=True, generator=torch.Generator().manual_seed(0))
    absolute = feature_noise(rows, 0.6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise, absolute)


def test_the_noise_level_may_be_a_tensor():
    x = features("i^-0.5", 12, 20)
    shape = noise_shape(x)
    number, tensor = (
        shape.sample(x, alpha, torch.Generator().manual_seed(0)) for alpha in (0.3, torch.tensor(0.3))
    )
    torch.testing.assert_close(number, tensor)


@pytest.mark.parametrize(("rows", "dim"), [(64, 96), (96, 64)])
@pytest.mark.parametrize("name", ["flat", "i^-1", "repeated rows"])
@pytest.mark.parametrize("scaling", LAWS)
def test_both_routes_and_rounded_features_draw_the_same_noise(scaling, name, rows, dim, monkeypatch):
    """Bases of singular vectors are not unique and jump with rounding; what is drawn must not."""
    x = features(name, rows, dim)

    def draw(x: Tensor) -> Tensor:
        return noise_shape(x, scaling).sample(x, 1.0, torch.Generator().manual_seed(0))

    drawn = draw(x)
    rounded = draw(x * (1 + 1e-7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))))
    monkeypatch.setattr(spectrum, "_by_products", lambda x: True)
    for other in (rounded, draw(x)):
        assert (other - drawn).norm() < 2e-3 * drawn.norm()
