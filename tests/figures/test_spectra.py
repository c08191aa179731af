from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from fanoise_lightning.figures.spectra import (
    marchenko_pastur_edge,
    noise_spectrum,
    side_spectrum,
    spectrum_figure,
)


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def record(step: int, noise: float = 0.1) -> dict[str, Any]:
    clean = gaussian(16, 32, seed=step)
    noisy = clean + noise * gaussian(16, 32, seed=step + 1)
    return {"step": step, "sides": {"query": side_spectrum(clean, noisy), "target": side_spectrum(clean)}}


@pytest.mark.parametrize(("rows", "columns"), [(400, 100), (200, 200), (100, 800)])
def test_the_edge_is_the_largest_singular_value_of_random_matrices(rows: int, columns: int) -> None:
    largest = [torch.linalg.svdvals(0.3 * gaussian(rows, columns, seed))[0].item() for seed in range(10)]
    assert sum(largest) / 10 == pytest.approx(marchenko_pastur_edge(0.3, rows, columns), rel=0.03)


def test_the_edge_is_that_of_the_marchenko_pastur_law() -> None:
    """As the eigenvalues of N^T N / B end at delta^2 (1 + sqrt(D / B))^2."""
    eigenvalue = 0.2**2 * (1 + (300 / 50) ** 0.5) ** 2
    assert marchenko_pastur_edge(0.2, 50, 300) == pytest.approx((50 * eigenvalue) ** 0.5)


def test_spectra_agree_with_an_svd() -> None:
    clean, noise = gaussian(12, 20), 0.1 * gaussian(12, 20, seed=1)
    spectrum = side_spectrum(clean, clean + noise)
    assert (spectrum["batch_size"], spectrum["dim"]) == (12, 20)
    for key, matrix in (("clean", clean), ("noisy", clean + noise), ("noise", noise)):
        assert spectrum[key] == pytest.approx(torch.linalg.svdvals(matrix).tolist(), rel=1e-5)  # type: ignore[literal-required]
    assert spectrum["noise_rms"] == pytest.approx((noise**2).mean().item() ** 0.5)


def test_the_tail_of_a_collapsed_spectrum_is_kept() -> None:
    """In float32 the Gram route would lose all under 3e-4 of the largest value."""
    values = torch.logspace(0, -6, 8, dtype=torch.float64)
    left, right = torch.linalg.qr(gaussian(8, 8)).Q, torch.linalg.qr(gaussian(8, 8, seed=1)).Q
    spectrum = side_spectrum(left @ torch.diag(values) @ right)
    assert spectrum["clean"] == pytest.approx(values.tolist(), rel=1e-3)


def test_noise_moves_no_singular_value_by_more_than_its_largest() -> None:
    """Weyl's inequality."""
    clean, noise = gaussian(30, 50), gaussian(30, 50, seed=1)
    spectrum = side_spectrum(clean, clean + noise)
    moved = [abs(a - b) for a, b in zip(spectrum["noisy"], spectrum["clean"])]
    assert max(moved) <= spectrum["noise"][0] * (1 + 1e-5)


def test_without_noise_there_is_a_clean_spectrum_only() -> None:
    clean = gaussian(4, 6)
    assert (
        set(side_spectrum(clean))
        == set(side_spectrum(clean, clean.clone()))
        == {"batch_size", "dim", "clean"}
    )


def test_noisy_features_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 6\) and \(4, 5\)"):
        side_spectrum(gaussian(4, 6), gaussian(4, 5))


def lines(figure: Figure, panel: int) -> dict[str, list[float]]:
    return {str(line.get_label()): list(line.get_ydata()) for line in figure.axes[panel].lines}  # type: ignore[arg-type]


def test_the_figure_has_a_panel_a_side_with_the_curves_of_the_last_record() -> None:
    first, last = record(0), record(50)
    figure = spectrum_figure([first, record(25), last])
    assert [axes.get_title() for axes in figure.axes] == [
        "query, step 50: 16 × 32",
        "target, step 50: 16 × 32",
    ]
    query = last["sides"]["query"]
    edge = marchenko_pastur_edge(query["noise_rms"], 16, 32)
    assert lines(figure, 0) == {
        "clean, step 0": first["sides"]["query"]["clean"],
        "clean": query["clean"],
        "noisy": query["noisy"],
        "noise alone": query["noise"],
        r"isotropic noise, $\delta(\sqrt{B}+\sqrt{D})$": [edge, edge],
        "noisy if isotropic, predicted": noise_spectrum([last])[1]["query"]["predicted"],
    }


def test_the_prediction_is_that_of_isotropic_noise_for_the_values_that_it_does_not_bury() -> None:
    """Two strong directions, a weak one, and noise: only the strong ones are visible in an SVD."""
    left, right = torch.linalg.qr(gaussian(300, 3)).Q, torch.linalg.qr(gaussian(400, 3, seed=1)).Q
    clean = left @ torch.diag(torch.tensor([80.0, 50.0, 2.0], dtype=torch.float64)) @ right.T
    noisy = clean + gaussian(300, 400, seed=2)
    record = {"step": 0, "sides": {"query": side_spectrum(clean, noisy), "target": side_spectrum(clean)}}
    numbers = noise_spectrum([record])[1]
    assert numbers["query"]["predicted"] == pytest.approx(torch.linalg.svdvals(noisy)[:2].tolist(), rel=0.02)
    assert numbers["query"]["edge"] == pytest.approx(300**0.5 + 400**0.5, rel=0.01)
    assert set(numbers["target"]) == {"batch_size", "dim", "clean"}
    json.dumps(numbers, allow_nan=False)


def test_a_side_without_noise_is_drawn_clean_only() -> None:
    assert list(lines(spectrum_figure([record(0)]), 1)) == ["clean"]


def test_the_figure_says_how_many_values_are_above_the_edge() -> None:
    entry = record(0, noise=0.5)
    query = entry["sides"]["query"]
    edge = marchenko_pastur_edge(query["noise_rms"], 16, 32)
    above = sum(value > edge for value in query["clean"])
    assert 0 < above < 16
    assert spectrum_figure([entry]).axes[0].texts[0].get_text() == f"{above} of 16 clean values above"


def test_zeros_do_not_break_the_logarithmic_axis(tmp_path: Any) -> None:
    rank_one = torch.ones(4, 6)
    figure = spectrum_figure(
        [{"step": 0, "sides": {"query": side_spectrum(rank_one, rank_one + torch.eye(4, 6))}}]
    )
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert all(value > 0 for line in lines(figure, 0).values() for value in line)


def test_no_record_is_an_error() -> None:
    with pytest.raises(ValueError, match="no spectra to draw"):
        spectrum_figure([])
