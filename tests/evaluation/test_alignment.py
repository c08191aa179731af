"""Alignment and uniformity, against the code in the paper's appendix and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import ive
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning.evaluation.alignment import alignment, uniformity


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_they_are_those_of_the_paper() -> None:
    """`align_loss` and `uniform_loss` of Wang and Isola, figure 5, of normalised rows."""
    x, y = gaussian(20, 6), gaussian(20, 6, seed=1)
    unit_x, unit_y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    assert alignment(x, y).item() == pytest.approx((unit_x - unit_y).norm(dim=1).pow(2).mean().item())
    assert uniformity(x).item() == pytest.approx(
        torch.pdist(unit_x, p=2).pow(2).mul(-2).exp().mean().log().item()
    )


def test_perfect_and_opposite_pairs() -> None:
    x = gaussian(5, 3)
    assert alignment(x, 7 * x).item() == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x).item() == pytest.approx(4)


def test_a_collapsed_batch_is_the_least_uniform() -> None:
    assert uniformity(torch.ones(9, 4)).item() == pytest.approx(0, abs=1e-5)


def test_the_uniform_distribution_on_the_circle() -> None:
    """E exp(4 cos(angle) - 4) is the scaled Bessel function I_0(4) e^-4."""
    angles = torch.arange(2001, dtype=torch.float64) * (2 * math.pi / 2001)
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert uniformity(circle).item() == pytest.approx(math.log(ive(0, 4)), abs=2e-3)


def test_half_precision_is_computed_in_float32() -> None:
    x = gaussian(30, 8)
    assert uniformity(x.half()).item() == pytest.approx(uniformity(x).item(), abs=1e-2)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape \(B, D\), got \(4, 3\) and \(5, 3\)"):
        alignment(gaussian(4, 3), gaussian(5, 3))
    with pytest.raises(ValueError, match="at least 2 rows to be compared, got 1"):
        uniformity(gaussian(1, 3))
