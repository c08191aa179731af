"""What theory predicts, against simulated noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fanoise_lightning import feature_noise
from fanoise_lightning.figures.spectra import marchenko_pastur_edge
from fanoise_lightning.theory import (
    noise_energy,
    predicted_overlaps,
    predicted_singular_values,
    weyl_bound,
)

LAWS = ["uniform", "sublinear", "linear", torch.log1p]


def features(values: Tensor, rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Features (B, D) with singular values (K,), and their right singular vectors (K, D)."""
    left, right = (torch.linalg.qr(torch.randn(n, len(values)).double())[0] for n in (rows, dim))
    return (left * values) @ right.T, right.T


def power_law(exponent: float, rows: int, dim: int) -> Tensor:
    """All R singular values, of rows of unit length."""
    values = torch.arange(1, min(rows, dim) + 1).double() ** -exponent
    return values * math.sqrt(rows) / values.norm()


def threshold(noise_rms: float, rows: int, dim: int) -> float:
    return noise_rms * (rows * dim) ** 0.25


def simulated(values: Tensor, noise_rms: float, rows: int, dim: int, draws: int) -> list[Tensor]:
    """Noisy singular values and |<v_i, v~_i>|, both (draws, K), by the SVD of torch."""
    count, found, overlaps = len(values), [], []
    for _ in range(draws):
        clean, right = features(values, rows, dim)
        noise = noise_rms * torch.randn(rows, dim, dtype=torch.float64)
        _, noisy, vectors = torch.linalg.svd(clean + noise, full_matrices=False)
        found.append(noisy[:count])
        overlaps.append((vectors[:count] * right).sum(1).abs())
    return [torch.stack(found), torch.stack(overlaps)]


# Singular values and vectors under uniform noise


@pytest.mark.parametrize(("rows", "dim"), [(200, 300), (300, 100)])
def test_spectra_and_overlaps_of_strong_directions_are_those_of_a_simulation(rows, dim):
    """Within 2 % and 4 %: the sampling error of 40 draws is below 1 %, the matrices are small."""
    torch.manual_seed(0)
    values = threshold(0.3, rows, dim) * torch.tensor([6.0, 3.0, 2.0]).double()
    found, overlaps = simulated(values, 0.3, rows, dim, draws=40)
    expected = predicted_singular_values(values, 0.3, rows, dim)
    assert found.mean(0).tolist() == pytest.approx(expected.tolist(), rel=0.02)
    expected = predicted_overlaps(values, 0.3, rows, dim)
    assert overlaps.mean(0).tolist() == pytest.approx(expected.tolist(), rel=0.04)
    assert (expected < 0.97).any()  # overlaps of 1 would prove little


@pytest.mark.slow
def test_at_the_size_of_the_paper_the_theory_holds_within_two_percent():
    """1000 rows in 1536 dimensions, alpha 0.5, down to 2.5 times the threshold; then the edge."""
    torch.manual_seed(0)
    rows, dim, noise_rms = 1000, 1536, 0.5 / math.sqrt(1536)
    values = threshold(noise_rms, rows, dim) * torch.tensor([8.0, 4.0, 2.5, 0.5]).double()
    found, overlaps = simulated(values, noise_rms, rows, dim, draws=2)
    expected = predicted_singular_values(values, noise_rms, rows, dim)
    assert found.mean(0).tolist() == pytest.approx(expected.tolist(), rel=0.02)
    expected = predicted_overlaps(values, noise_rms, rows, dim)
    assert overlaps[:, :3].mean(0).tolist() == pytest.approx(expected[:3].tolist(), rel=0.02)
    assert expected[3] == 0
    assert overlaps[:, 3].max() < 0.15


def test_left_vectors_are_the_right_ones_of_the_transpose():
    """|<u_i, u~_i>|^2 = 1 - c (1 + theta^2) / (theta^2 (theta^2 + c)), theta = s / (delta sqrt(D))."""
    values, delta, rows, dim = torch.tensor([9.0, 7.0, 6.0]).double(), 0.5, 50, 120
    square, c = (values / (delta * math.sqrt(dim))) ** 2, rows / dim
    assert (square > math.sqrt(c)).all()
    left = 1 - c * (1 + square) / (square * (square + c))
    right = 1 - (c + square) / (square * (square + 1))
    assert torch.allclose(predicted_overlaps(values, delta, dim, rows).square(), left)
    assert torch.allclose(predicted_overlaps(values, delta, rows, dim).square(), right)
    noisy = delta * math.sqrt(dim) * ((1 + square) * (c + square) / square).sqrt()
    for shape in ((rows, dim), (dim, rows)):
        assert torch.allclose(predicted_singular_values(values, delta, *shape), noisy)


@pytest.mark.parametrize(("rows", "dim"), [(64, 64), (40, 90), (90, 40)])
def test_at_the_threshold_and_below_it_there_is_the_edge_and_no_overlap(rows, dim):
    edge = marchenko_pastur_edge(0.2, rows, dim)
    values = threshold(0.2, rows, dim) * torch.tensor([1 + 1e-9, 1 - 1e-9, 0.3, 0.0]).double()
    assert predicted_singular_values(values, 0.2, rows, dim).tolist() == pytest.approx([edge] * 4)
    overlaps = predicted_overlaps(values, 0.2, rows, dim)
    assert overlaps[0].item() == pytest.approx(0, abs=1e-4)
    assert overlaps[1:].tolist() == [0, 0, 0]


def test_below_the_threshold_the_overlap_vanishes_as_matrices_grow():
    """A finite matrix keeps some of it, about D^(-1/2): half at four times the size."""
    torch.manual_seed(0)
    kept = []
    for rows in (40, 160):
        values = threshold(1.0, rows, 2 * rows) * torch.tensor([0.6]).double()
        kept.append(simulated(values, 1.0, rows, 2 * rows, draws=60)[1].square().mean().sqrt().item())
    assert kept[0] < 0.35
    assert kept[1] < 0.7 * kept[0]


def test_without_noise_nothing_changes():
    values = torch.tensor([3.0, 1e-20, 0.0])
    assert predicted_singular_values(values, 0.0, 8, 4).tolist() == values.tolist()
    assert predicted_overlaps(values, 0.0, 8, 4).tolist() == [1, 1, 0]


def test_crowded_directions_mix_with_their_neighbours_but_stay_in_their_group():
    """Where the theorem stops: with close values, v~_i keeps to the span of its group, not to v_i."""
    torch.manual_seed(0)
    rows, dim = 300, 400
    values = threshold(0.2, rows, dim) * torch.linspace(4.2, 3.8, 10).double()
    clean, right = features(values, rows, dim)
    noise = 0.2 * torch.randn(rows, dim, dtype=torch.float64)
    vectors = torch.linalg.svd(clean + noise, full_matrices=False)[2][:10]
    predicted = predicted_overlaps(values, 0.2, rows, dim)
    squares = (vectors @ right.T).square()  # noisy by clean
    assert squares.sum(0).mean().sqrt().item() == pytest.approx(predicted.mean().item(), rel=0.02)
    assert squares.diagonal().sqrt().mean() < 0.7 * predicted.mean()


# Energy and Weyl's bound


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("rows", "dim"), [(16, 64), (64, 16), (32, 32)])
def test_the_energy_is_that_of_measured_noise_rows(law, rows, dim):
    torch.manual_seed(0)
    values = power_law(0.7, rows, dim)
    clean, _ = features(values, rows, dim)
    energies = torch.stack([feature_noise(clean, 0.3, law).square().sum(1) for _ in range(4000 // rows)])
    mean = energies.mean().item() / 0.3**2
    error = energies.std().item() / math.sqrt(energies.numel()) / 0.3**2
    assert abs(mean - noise_energy(values, law, rows, dim)) < 4 * error
    assert error < 0.05 * mean


def test_the_energy_in_closed_form():
    for rows in (4, 8, 24):  # an even spectrum: R / D, whatever the law
        values = torch.ones(min(rows, 8))
        for law in LAWS[1:]:
            assert noise_energy(values, law, rows, 8) == pytest.approx(min(rows, 8) / 8)
        assert noise_energy(values, "uniform", rows, 8) == 1
    one = torch.tensor([5.0, 0.0, 0.0])  # one direction: R^2 / D
    assert noise_energy(one, "linear", 3, 4) == pytest.approx(9 / 4)
    two = torch.tensor([9.0, 1.0])  # weights 9, 1 and 3, 1, of means 5 and 2
    assert noise_energy(two, "linear", 2, 2) == pytest.approx((81 + 1) / 25 / 2)
    assert noise_energy(two, "sublinear", 2, 2) == pytest.approx((9 + 1) / 4 / 2)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("rows", "dim"), [(40, 60), (60, 40)])
def test_no_singular_value_moves_further_than_weyl_allows(law, rows, dim):
    """By ||E||_2 in every draw, and ||E||_2 by its bound on average."""
    torch.manual_seed(0)
    values, alpha = power_law(0.7, rows, dim), 0.5
    clean, _ = features(values, rows, dim)
    norms = []
    for _ in range(40):
        noise = feature_noise(clean, alpha, law)
        norms.append(torch.linalg.matrix_norm(noise, 2).item())
        moved = torch.linalg.svdvals(clean + noise) - values
        assert moved.abs().max() <= norms[-1] * (1 + 1e-9)
    bound = alpha * weyl_bound(values, law, rows, dim)
    assert 0.7 * bound < sum(norms) / len(norms) <= bound


def test_the_bound_of_uniform_noise_is_the_edge():
    for rows, dim in ((10, 40), (40, 10)):
        edge = marchenko_pastur_edge(0.5 / math.sqrt(dim), rows, dim)
        assert 0.5 * weyl_bound(torch.ones(10), "uniform", rows, dim) == pytest.approx(edge)


# Shaped noise and the tail


def test_the_signal_to_noise_ratio_falls_with_the_spectrum_but_not_for_linear_noise():
    torch.manual_seed(0)
    rows, dim, draws = 32, 48, 300
    values = power_law(0.7, rows, dim)
    clean, right = features(values, rows, dim)
    ratios = {}
    for law, power in (("uniform", 0.0), ("sublinear", 0.5), ("linear", 1.0)):
        noise = torch.cat([feature_noise(clean, 1.0, law) @ right.T for _ in range(draws)])
        ratios[law] = values.square() / noise.square().mean(0)
        falling = ratios[law] / values ** (2 - 2 * power)  # S_i ~ s_i^power
        assert falling.std() / falling.mean() < 0.05  # 9600 rows: 0.014 by chance
    assert ratios["uniform"][0] / ratios["uniform"][-1] > 50 * ratios["linear"][0] / ratios["linear"][-1]


def test_at_equal_energy_shaped_noise_keeps_more_of_the_tail():
    """The overlap of the weaker halves of the clean and the noisy directions, corrected for chance."""
    torch.manual_seed(0)
    rows, dim = 96, 144
    kept: dict[str, list[float]] = {"uniform": [], "sublinear": [], "linear": []}
    for _ in range(8):
        clean, right = features(power_law(0.7, rows, dim), rows, dim)
        for law in kept:
            noisy = clean + feature_noise(clean, 0.5, law, energy="constant")
            vectors = torch.linalg.svd(noisy, full_matrices=False)[2]
            tail = (vectors[rows // 2 :] @ right[rows // 2 :].T).square().sum() / (rows // 2)
            space = dim if law == "uniform" else rows  # shaped noise stays in the row space
            chance = (rows // 2) / space
            kept[law].append(((tail - chance) / (1 - chance)).item())
    for weaker, stronger in (("uniform", "sublinear"), ("sublinear", "linear")):
        assert all(a < b for a, b in zip(kept[weaker], kept[stronger])), (weaker, stronger)


# What is refused


@pytest.mark.parametrize("function", [predicted_singular_values, predicted_overlaps])
@pytest.mark.parametrize(
    ("values", "arguments", "message"),
    [
        (torch.ones(5), (0.1, 4, 9), r"\(4, 9\) have 4 singular values, got 5"),
        (torch.ones(2, 2), (0.1, 4, 9), r"must be singular values \(K,\), got .* of shape \(2, 2\)"),
        (torch.ones(0), (0.1, 4, 9), r"of shape \(0,\)"),
        (torch.ones(2).long(), (0.1, 4, 9), "got torch.int64"),
        (torch.tensor([1.0, -2.0]), (0.1, 4, 9), "at least 0, got -2"),
        (torch.tensor([math.nan]), (0.1, 4, 9), "finite and at least 0, got nan"),
        (torch.ones(2), (-0.1, 4, 9), "`noise_rms` must be finite and at least 0, got -0.1"),
        (torch.ones(2), (math.inf, 4, 9), "`noise_rms` must be finite and at least 0, got inf"),
        (torch.ones(2), (0.1, 0, 9), "`batch_size` must be at least 1, got 0"),
        (torch.ones(2), (0.1, 4, 0), "`dim` must be at least 1, got 0"),
    ],
)
def test_wrong_spectra_are_refused(function, values, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(values, *arguments)


@pytest.mark.parametrize("function", [noise_energy, weyl_bound])
def test_a_law_needs_all_singular_values(function):
    for law in ("uniform", "linear"):
        with pytest.raises(ValueError, match=r"min\(B, D\) = 4 .* got 2: add the zeros"):
            function(torch.ones(2), law, 4, 9)
    with pytest.raises(ValueError, match="got 'cubic'"):
        function(torch.ones(4), "cubic", 4, 9)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        function(torch.ones(4), torch.neg, 4, 9)
