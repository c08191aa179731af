from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fanoise_lightning import feature_noise, spectrum
from fanoise_lightning import noise as noise_module
from fanoise_lightning.noise import law_total, moment_shape, moment_total, noise_shape, row_norm
from fanoise_lightning.spectrum import second_moment

SCALINGS = ["uniform", "linear", "sublinear"]


def features(rows: int = 12, dim: int = 20, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    decay = torch.linspace(1, 0.1, dim)
    return F.normalize(torch.randn(rows, dim, generator=generator) * decay, dim=1)


def exact_covariance(x: torch.Tensor, alpha: float, scaling: str) -> torch.Tensor:
    """alpha^2 / D V diag(S^2) V^T by an exact SVD in double precision: the paper's formula, literally."""
    dim = x.shape[1]
    if scaling == "uniform":
        return alpha**2 / dim * torch.eye(dim, dtype=torch.float64)
    _, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    scale = s / s.mean() if scaling == "linear" else s.sqrt() / s.sqrt().mean()
    return alpha**2 / dim * v.T @ torch.diag(scale**2) @ v


def covariance_of(shape) -> torch.Tensor:
    """F^T F of a noise shape: the covariance of z F for standard normal z."""
    factor = torch.linalg.multi_dot(shape.factors) if len(shape.factors) > 1 else sum(shape.factors)
    if not shape.factors:
        factor = torch.eye(shape.dim)
    return (factor.T @ factor).double()


@pytest.mark.parametrize(("rows", "dim"), [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_sample_covariance_is_that_of_the_exact_svd(scaling, rows, dim, monkeypatch):
    monkeypatch.setattr(noise_module, "noise_shape", functools.cache(noise_shape))  # of one batch, 4000 times
    x, alpha, draws = features(rows, dim), 0.5, 4000
    generator = torch.Generator().manual_seed(1)
    noise = torch.cat([feature_noise(x, alpha, scaling, generator=generator) for _ in range(draws)]).double()
    expected = exact_covariance(x, alpha, scaling)
    # Var of a sample covariance entry of Gaussians: (C_ii C_jj + C_ij^2) / n.
    variances = expected.diagonal()
    error = ((variances[:, None] * variances + expected**2) / len(noise)).sqrt()
    z = (noise.T @ noise / len(noise) - expected) / error
    assert z.abs().max() < 5
    assert z.square().mean().item() == pytest.approx(1, abs=0.35)
    assert (noise.mean(0).abs() < 5 * (variances / len(noise)).sqrt()).all()


@pytest.mark.parametrize("scaling", ["linear", "sublinear"])
def test_noise_stays_in_the_row_space_when_rows_are_fewer_than_dimensions(scaling):
    x = features(6, 20)
    noise = feature_noise(x, 1.0, scaling)
    _, _, v = torch.linalg.svd(x, full_matrices=True)
    assert (noise @ v[6:].T).abs().max() < 1e-5


def test_uniform_noise_fills_all_dimensions():
    noise = feature_noise(features(6, 20), 1.0, "uniform")
    _, _, v = torch.linalg.svd(features(6, 20), full_matrices=True)
    assert (noise @ v[6:].T).std() > 0.1


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("rows", "dim"), [(12, 20), (20, 12)])
def test_constant_energy_gives_every_law_the_same_mean_square_norm(scaling, rows, dim):
    shape = noise_shape(features(rows, dim), scaling, "constant")
    assert covariance_of(shape).trace().item() == pytest.approx(dim, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    scaling=st.sampled_from(SCALINGS),
    energy=st.sampled_from(["paper", "constant"]),
    rows=st.integers(2, 14),
    dim=st.integers(2, 14),
    factor=st.floats(0.01, 100),
    seed=st.integers(0, 99),
)
def test_the_law_turns_with_the_features_and_ignores_their_scale(scaling, energy, rows, dim, factor, seed):
    x = features(rows, dim, seed).double()
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))
    base = covariance_of(noise_shape(x, scaling, energy))
    turned = covariance_of(noise_shape(x @ rotation, scaling, energy))
    scaled = covariance_of(noise_shape(factor * x, scaling, energy))
    assert torch.allclose(turned, rotation.T @ base @ rotation, atol=1e-7 * base.norm())
    assert torch.allclose(scaled, base, atol=1e-7 * base.norm())


def test_noise_on_the_keys_reweights_the_gradient_as_the_theory_says():
    """E grad_q L = -(1/tau) (k_l - sum_j E[p_j] k_j - (delta^2/tau) sum_j p_j (1 - p_j) q) to order delta^2.

    The last term is the paper's; E[p_j] = p_j + (delta/tau)^2 p_j (sum_i p_i^2 - p_j) is the softmax of noisy
    logits, which the paper leaves out, since it vanishes for diffuse p.
    """
    torch.manual_seed(0)
    count, dim, tau, delta, draws = 12, 6, 0.5, 0.02, 40_000
    keys = F.normalize(torch.randn(count, dim, dtype=torch.float64), dim=1)
    query = F.normalize(torch.randn(dim, dtype=torch.float64), dim=0)

    def gradients(keys: torch.Tensor) -> torch.Tensor:
        queries = query.expand(len(keys), -1).clone().requires_grad_()
        logits = torch.einsum("nd,nkd->nk", queries, keys) / tau
        F.cross_entropy(logits, torch.zeros(len(keys), dtype=torch.long), reduction="sum").backward()
        return queries.grad

    rows = torch.randn(draws * count, dim, dtype=torch.float64)
    noise = feature_noise(rows, delta * math.sqrt(dim), "uniform").view(draws, count, dim)
    # Antithetic pairs: the first order in delta has no mean, but nearly all of the variance.
    shifts = (gradients(keys + noise) + gradients(keys - noise)) / 2 - gradients(keys[None])
    mean, error = shifts.mean(0), shifts.std(0) / math.sqrt(draws)

    p = (keys @ query / tau).softmax(0)
    weights = (delta / tau) ** 2 * p * (p.square().sum() - p)
    expected = (weights @ keys + delta**2 / tau * (p * (1 - p)).sum() * query) / tau
    assert ((mean - expected).abs() < 5 * error).all()
    assert (expected.abs() > 20 * error).any()  # the standard error is small enough to tell


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_noise_has_the_dtype_of_the_features_and_no_gradient(dtype):
    x = features().to(dtype).requires_grad_()
    noise = feature_noise(x)
    assert noise.dtype == dtype
    assert noise.shape == x.shape
    assert not noise.requires_grad


@pytest.mark.parametrize("by_products", [False, True])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_autocast_does_not_reach_the_noise(scaling, by_products, monkeypatch):
    monkeypatch.setattr(spectrum, "_by_products", lambda x: by_products)
    x = features(128, 160)

    def computed() -> list[torch.Tensor]:
        shape, moment = noise_shape(x, scaling), second_moment(x)
        noise = shape.sample(x, 0.5, torch.Generator().manual_seed(0))
        totals = [law_total(x, scaling), moment_total(moment, 128, scaling), row_norm(x)]
        shapes = [shape, shape.folded(), moment_shape(moment, scaling)]
        return [noise, *totals, *(factor for shape in shapes for factor in shape.factors)]

    expected = computed()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, computed(), expected))


def test_a_generator_makes_the_noise_repeatable():
    x = features()
    first, again = (feature_noise(x, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    other = feature_noise(x, generator=torch.Generator().manual_seed(8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_alpha_scales_the_noise_and_zero_is_none():
    x = features()
    one, five = (feature_noise(x, a, generator=torch.Generator().manual_seed(0)) for a in (0.1, 0.5))
    assert torch.allclose(5 * one, five, atol=1e-6)
    assert not feature_noise(x, 0.0).any()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(
    "x", [torch.ones(8, 16), torch.ones(1, 16)], ids=["all rows equal", "a batch of one"]
)
def test_a_batch_of_rank_one_gets_finite_noise(x, scaling):
    assert feature_noise(x, 0.1, scaling).isfinite().all()


@pytest.mark.parametrize("scaling", ["uniform", "linear"])
def test_uniform_and_linear_compute_no_eigenvectors(scaling, monkeypatch):
    def refuse(*args):
        raise AssertionError("eigenvectors computed")

    monkeypatch.setattr(torch.linalg, "eigh", refuse)
    monkeypatch.setattr(torch.linalg, "svd", refuse)
    feature_noise(features(), 0.1, scaling)
    feature_noise(features(20, 12), 0.1, scaling)


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_a_bad_alpha_is_named(alpha):
    with pytest.raises(ValueError, match=f"`alpha`.*{alpha}"):
        feature_noise(features(), alpha)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"`scaling`.*'sublinear'.*'cubic'"):
        feature_noise(features(), scaling="cubic")
    with pytest.raises(ValueError, match=r"`energy`.*'paper'.*'loud'"):
        feature_noise(features(), energy="loud")


def test_broken_features_are_named():
    x = features()
    x[0, 0] = math.nan
    with pytest.raises(ValueError, match="1 of the 240 values"):
        feature_noise(x)
    x[0, 0] = -math.inf
    with pytest.raises(ValueError, match="1 of the 240 values"):
        feature_noise(x)
    with pytest.raises(ValueError, match="all zero"):
        feature_noise(torch.zeros(4, 4))
