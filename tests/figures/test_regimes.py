"""Differences to a baseline over regimes."""

from __future__ import annotations

import pytest

from fanoise_lightning.figures.regimes import draw_regimes

EFFECTS = {"1 pass": (-0.01, (-0.02, 0.0)), "40 passes": (0.03, None)}


def test_the_numbers_are_the_points_of_the_figure():
    figure, numbers = draw_regimes({"OOD": {"noise": EFFECTS}, "IND": {"noise": EFFECTS}}, "noise less none")
    assert [(n["mean"], n["regime"], n["difference"], n["interval"]) for n in numbers] == [
        ("OOD", "1 pass", -1, [-2, 0]),
        ("OOD", "40 passes", 3, None),
        ("IND", "1 pass", -1, [-2, 0]),
        ("IND", "40 passes", 3, None),
    ]
    for ax in figure.axes:
        assert [label.get_text() for label in ax.get_xticklabels()] == ["1 pass", "40 passes"]
        line = next(line for line in ax.lines if line.get_label() == "noise")
        assert list(line.get_ydata()) == [-1, 3]
        interval = next(line for line in ax.lines if list(line.get_ydata()) == [-2, 0])
        assert interval.get_xdata()[0] == interval.get_xdata()[1] == line.get_xdata()[0]


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ({}, "no arms"),
        ({"OOD": {"noise": {}}}, "no arms"),
        ({"OOD": {"a": EFFECTS, "b": {"1 pass": (0.0, None)}}}, "different regimes"),
    ],
)
def test_what_cannot_be_drawn_is_said(panels, message):
    with pytest.raises(ValueError, match=message):
        draw_regimes(panels, "")
