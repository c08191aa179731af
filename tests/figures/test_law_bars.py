from __future__ import annotations

import json
from typing import Any

import pytest
from matplotlib.colors import to_hex

from fanoise_lightning.figures.law_bars import law_bars
from fanoise_lightning.figures.style import LAW_COLOURS, colours

LAWS: dict[str, Any] = {
    "uniform": {"IND": (0.01, (-0.01, 0.03)), "OOD": (-0.02, (-0.03, -0.01))},
    "sublinear": {"IND": (0.02, (0.01, 0.03)), "OOD": (0.01, None)},
}


def test_bars_are_the_differences_in_points() -> None:
    figure, numbers = law_bars(LAWS, "alpha 0.1")
    heights = [bar.get_height() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert heights == pytest.approx([1, -2, 2, 1])
    assert numbers["uniform"]["OOD"] == {"difference": -2.0, "interval": [-3.0, -1.0]}
    assert numbers["sublinear"]["OOD"] == {"difference": 1.0, "interval": None}
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["IND", "OOD"]
    assert figure.axes[0].get_title().startswith("alpha 0.1")


def test_a_bar_is_filled_if_its_interval_excludes_0() -> None:
    figure, _ = law_bars(LAWS, "alpha 0.1")
    fills = [to_hex(bar.get_facecolor()).upper() for bar in figure.axes[0].patches]
    assert fills == ["#FFFFFF", LAW_COLOURS["uniform"], LAW_COLOURS["sublinear"], "#FFFFFF"]


def test_names_beyond_the_laws_have_colours_of_their_own() -> None:
    names = ["linear", "linear, where input", "torch.log1p", "uniform"]
    found = colours(names)
    assert len(set(found.values())) == 4
    assert (found["linear"], found["uniform"]) == (LAW_COLOURS["linear"], LAW_COLOURS["uniform"])


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="no laws to draw"):
        law_bars({}, "")
    with pytest.raises(ValueError, match=r"'linear' has the means \['OOD'\], expected \['IND', 'OOD'\]"):
        law_bars({**LAWS, "linear": {"OOD": (0.0, None)}}, "")
