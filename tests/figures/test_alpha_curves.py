from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from fanoise_lightning.figures.alpha_curves import alpha_curves
from fanoise_lightning.figures.style import LAW_COLOURS


def scores(alphas: tuple[float, ...], seeds: int = 5) -> dict[float, list[float]]:
    rng = np.random.default_rng(0)
    return {alpha: rng.uniform(0.2, 0.6, seeds).tolist() for alpha in alphas}


def test_scores_are_means_over_seeds_with_the_t_interval_of_scipy() -> None:
    by_alpha = scores((0.5, 0.0, 0.1))
    _, numbers = alpha_curves({"OOD": {"sublinear": by_alpha}})
    points = numbers["OOD"]["sublinear"]
    assert [point["alpha"] for point in points] == [0.0, 0.1, 0.5]
    for point in points:
        values = 100 * np.array(by_alpha[point["alpha"]])
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert point["score"] == pytest.approx(values.mean())
        assert point["interval"] == pytest.approx([interval.low, interval.high])
        assert point["seeds"] == 5
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


def test_each_mean_has_a_panel_in_which_all_is_visible() -> None:
    lines = {law: scores((0.0, 0.1, 2.0)) for law in ("linear", "uniform")}
    figure, numbers = alpha_curves({"IND": lines, "overall": lines})
    assert [ax.get_title() for ax in figure.axes] == [
        "IND: mean of 5 seeds, 95 %",
        "overall: mean of 5 seeds, 95 %",
    ]
    for ax in figure.axes:
        low, high = ax.get_ylim()
        for points in numbers["IND"].values():
            assert all(low < point["interval"][0] < point["interval"][1] < high for point in points)
    drawn = [container.lines[0] for container in figure.axes[0].containers]  # type: ignore[attr-defined]
    assert [line.get_color() for line in drawn] == [LAW_COLOURS["linear"], LAW_COLOURS["uniform"]]


def test_one_seed_has_a_score_and_no_interval() -> None:
    figure, numbers = alpha_curves({"overall": {"sublinear": {0.0: [0.5], 0.1: [0.25]}}})
    assert [(p["score"], p["interval"]) for p in numbers["overall"]["sublinear"]] == [
        (50.0, None),
        (25.0, None),
    ]
    assert figure.axes[0].get_title() == "overall: one seed, no interval"


def test_seeds_that_agree_have_an_interval_of_no_width() -> None:
    _, numbers = alpha_curves({"overall": {"sublinear": {0.1: [0.25, 0.25]}}})
    assert numbers["overall"]["sublinear"][0]["interval"] == [25.0, 25.0]


@pytest.mark.parametrize("nothing", [{}, {"OOD": {}}, {"OOD": {"sublinear": {}}}])
def test_no_score_is_an_error(nothing) -> None:
    with pytest.raises(ValueError, match="no scores to draw"):
        alpha_curves(nothing)
