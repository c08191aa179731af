from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fanoise_lightning import effective_rank, newton_schulz, singular_values, spectrum
from fanoise_lightning.spectrum import decompose

SHAPES = [(8, 32), (32, 8), (16, 16), (1, 8)]


def features(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Unit rows with a decaying spectrum."""
    generator = torch.Generator().manual_seed(seed)
    decay = torch.linspace(1, 0.1, dim)
    return F.normalize(torch.randn(rows, dim, generator=generator) * decay, dim=1)


@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_gram_route_gives_the_singular_values_of_the_svd(rows, dim):
    x = features(rows, dim)
    assert torch.allclose(singular_values(x), torch.linalg.svdvals(x), atol=1e-4)


@pytest.mark.parametrize("method", ["gram", "svd"])
@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_decomposition_gives_back_the_second_moment(rows, dim, method):
    x = features(rows, dim)
    values, vectors = decompose(x, method)
    assert values.shape == (min(rows, dim),)
    assert vectors.shape == (min(rows, dim), dim)
    assert torch.allclose(vectors.T @ torch.diag(values**2) @ vectors, x.T @ x, atol=1e-5)
    clear = vectors[values > 0.05 * values[0]]  # squaring costs the far tail its orthogonality
    assert torch.allclose(clear @ clear.T, torch.eye(len(clear)), atol=1e-3)
    assert (values.diff() <= 0).all()


def test_half_precision_is_worked_on_in_float32_and_float64_stays():
    x = features(8, 32)
    assert singular_values(x.bfloat16()).dtype == torch.float32
    assert singular_values(x.double()).dtype == torch.float64


def test_autocast_and_tf32_do_not_reach_the_spectrum():
    x = features(16, 64)
    expected = singular_values(x)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(singular_values(x), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_matmul_precision_is_the_highest_inside_and_the_users_outside():
    torch.set_float32_matmul_precision("medium")
    try:
        with spectrum.full_precision(features(2, 2)):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_effective_rank_of_equal_values_is_their_number_and_of_one_direction_is_one():
    assert effective_rank(torch.full((12,), 3.0)).item() == pytest.approx(12)
    assert effective_rank(torch.tensor([5.0, 0.0, 0.0])).item() == pytest.approx(1)


def test_effective_rank_is_the_exponential_of_the_entropy():
    shares = [0.5, 0.3, 0.2]
    entropy = -sum(p * math.log(p) for p in shares)
    assert effective_rank(7 * torch.tensor(shares)).item() == pytest.approx(math.exp(entropy), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_orthogonal_factor_is_that_of_the_svd(dtype):
    x = features(24, 48).to(dtype)
    u, _, v = torch.linalg.svd(x.double(), full_matrices=False)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert (newton_schulz.orthogonal_factor(x).double() - u @ v).abs().max() < tolerance


@pytest.mark.parametrize("low", [1e-15, 1e-6, 1e-3, 0.5])
@pytest.mark.parametrize("tolerance", [1e-12, 1e-6, 1e-3])
def test_the_steps_carry_all_values_to_one_and_none_is_left_out_or_too_many(low, tolerance):
    values = torch.logspace(math.log10(low), 0, 10_000, dtype=torch.float64)
    for linear, cubic in newton_schulz._steps(low, tolerance):
        before, values = values, linear * values - cubic * values**3
    assert (values - 1).abs().max() < 1.01 * tolerance
    assert (before - 1).abs().max() > tolerance


@pytest.mark.parametrize("repeated", [False, True])
def test_the_square_root_of_a_matrix_squares_to_it(repeated):
    x = features(24, 48)
    x = x[:8].repeat(3, 1) if repeated else x  # a singular Gram matrix
    gram = x @ x.T
    root, trace = newton_schulz.square_root(gram)
    assert torch.allclose(root @ root, gram, atol=5e-4 if repeated else 1e-5)
    nuclear_norm = torch.linalg.svdvals(x.double()).sum()
    assert trace.item() == pytest.approx(nuclear_norm.item(), rel=1e-3)


def test_a_square_root_survives_null_directions_that_rounding_made_negative():
    v, _ = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    eigenvalues = torch.full((64,), -2e-7)
    eigenvalues[0] = 1
    root, trace = newton_schulz.square_root(v * eigenvalues @ v.T)
    assert (root - v[:, :1] @ v[:, :1].T).norm() < 0.01
    assert trace.item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("rows", "dim"), SHAPES)
def test_weak_directions_keep_their_singular_values(rows, dim):
    # In float32 squaring would hide them: 1e-5 of the largest is 1e-10 squared.
    s = torch.logspace(0, -5, min(rows, dim), dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(size, len(s), dtype=torch.float64))[0] for size in (rows, dim))
    x = ((left * s) @ right.T).float()
    exact = torch.linalg.svdvals(x.double())
    assert torch.allclose(singular_values(x).double(), exact, rtol=1e-4)
    assert torch.allclose(decompose(x)[0].double(), exact, rtol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_have_no_singular_values(bad):
    x = features(8, 32)
    x[0, 0] = bad
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        singular_values(x)
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        decompose(x)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.long), torch.zeros(0, 4)])
def test_what_is_no_feature_matrix_is_refused_with_its_shape(bad):
    with pytest.raises(ValueError, match="non-empty floating point matrix"):
        singular_values(bad)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="'lanczos'"):
        singular_values(torch.eye(2), "lanczos")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_value_is_that_of_the_magnitudes_and_nan_comes_through(dtype):
    x = torch.tensor([[0.5, -3.0], [2.0, 0.0]], dtype=dtype)
    assert spectrum.largest(x) == 3
    assert spectrum.largest(-x) == 3
    assert spectrum.largest(0 * x) == 0
    for bad, expected in ((math.inf, math.inf), (-math.inf, math.inf), (math.nan, math.nan)):
        x[1, 1] = bad
        assert torch.equal(spectrum.largest(x).isnan(), torch.tensor(math.isnan(expected)))
        assert math.isnan(expected) or spectrum.largest(x) == expected
