from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from fanoise_lightning.figures.overlaps import overlaps


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_cosines_are_those_of_an_svd_averaged_over_the_draws() -> None:
    features, draws = gaussian(6, 9), 0.3 * gaussian(3, 6, 9, seed=1)
    _, numbers = overlaps(features, {"sublinear": draws})
    clean = np.linalg.svd(features.numpy(), full_matrices=False)
    by_hand = [
        np.abs((clean[2] * np.linalg.svd(features.numpy() + draw, full_matrices=False)[2]).sum(axis=1))
        for draw in draws.numpy()
    ]
    assert numbers["values"] == pytest.approx(clean[1].tolist(), rel=1e-5)
    assert numbers["laws"]["sublinear"]["overlaps"] == pytest.approx(np.mean(by_hand, axis=0), rel=1e-4)
    assert numbers["laws"]["sublinear"]["noise_rms"] == pytest.approx(draws.square().mean().item() ** 0.5)
    assert "predicted" not in numbers["laws"]["sublinear"]
    json.dumps(numbers, allow_nan=False)


def test_far_apart_directions_keep_what_is_predicted_for_uniform_noise() -> None:
    left, right = torch.linalg.qr(gaussian(300, 4)).Q, torch.linalg.qr(gaussian(400, 4, seed=1)).Q
    values = torch.tensor([90.0, 60.0, 40.0, 28.0], dtype=torch.float64)
    draws = gaussian(3, 300, 400, seed=2)
    _, numbers = overlaps(left @ torch.diag(values) @ right.T, {"uniform": draws})
    measured, predicted = (numbers["laws"]["uniform"][key][:4] for key in ("overlaps", "predicted"))
    assert measured == pytest.approx(predicted, abs=0.05)
    assert numbers["laws"]["uniform"]["predicted"][4:] == [0.0] * 296


def test_there_is_a_line_for_each_law_and_one_for_the_prediction() -> None:
    noise = {law: 0.1 * gaussian(2, 5, 8, seed=seed) for seed, law in enumerate(("uniform", "linear"))}
    figure, numbers = overlaps(gaussian(5, 8), noise)
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}  # type: ignore[arg-type]
    assert list(lines) == ["uniform", "uniform, predicted if far apart", "linear"]
    assert lines["linear"] == numbers["laws"]["linear"]["overlaps"]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise to draw"):
        overlaps(gaussian(4, 6), {})
    with pytest.raises(ValueError, match=r"'linear' must be \(K, B, D\).*got \(4, 6\)"):
        overlaps(gaussian(4, 6), {"linear": gaussian(4, 6)})
