from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fanoise_lightning.figures.training_curves import training_curves


def record(step: int, *sides: str) -> dict[str, Any]:
    values = (np.arange(8, 0, -1.0) ** (1 + step / 100)).tolist()
    spectra = {side: {"batch_size": 8, "dim": 16, "clean": values} for side in sides}
    spread = dict.fromkeys(sides, -2.0 - step / 100)
    return {"step": step, "sides": spectra, "alignment": 1 - step / 100, "uniformity": spread}


def test_the_numbers_are_those_of_the_records() -> None:
    records = [record(step, "query", "target") for step in (0, 50)]
    figure, numbers = training_curves(records)
    assert numbers["steps"] == [0, 50]
    assert numbers["alignment"] == [1.0, 0.5]
    assert numbers["uniformity"] == {"query": [-2.0, -2.5], "target": [-2.0, -2.5]}
    for place, entry in enumerate(records):
        share = np.array(entry["sides"]["query"]["clean"])
        share /= share.sum()
        rank = np.exp(-(share * np.log(share)).sum())  # Roy and Vetterli, by hand
        assert numbers["effective_rank"]["target"][place] == pytest.approx(rank)
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    titles = [ax.get_title() for ax in figure.axes]
    assert [title.split(" (")[0] for title in titles] == [
        "alignment",
        "uniformity",
        "effective rank",
        "query: clean spectra",
        "target: clean spectra",
    ]
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 0.5]


def test_of_many_records_some_spectra_are_drawn_the_first_and_last_among_them() -> None:
    _, numbers = training_curves([record(step, "query") for step in range(100)])
    steps = [spectrum["step"] for spectrum in numbers["spectra"]["query"]]
    assert (steps[0], steps[-1], len(steps)) == (0, 99, 6)
    assert len(numbers["steps"]) == 100


def test_files_without_alignment_and_uniformity_have_the_other_panels() -> None:
    entry = {key: value for key, value in record(0, "query").items() if key in ("step", "sides")}
    figure, numbers = training_curves([entry])
    assert set(numbers) == {"steps", "effective_rank", "spectra"}
    assert len(figure.axes) == 2


def test_a_record_that_lacks_a_value_leaves_a_gap() -> None:
    later = record(1, "query")
    del later["alignment"], later["uniformity"]
    figure, numbers = training_curves([record(0, "query", "target"), later])
    assert numbers["alignment"] == [1.0, None]
    assert numbers["effective_rank"]["target"][1] is None
    assert np.isnan(figure.axes[0].lines[0].get_ydata()[1])


def test_features_that_are_all_zero_have_no_rank_and_no_curve() -> None:
    entry = record(0, "query")
    entry["sides"]["query"]["clean"] = [0.0] * 8
    figure, numbers = training_curves([record(0, "query"), entry])
    assert numbers["effective_rank"]["query"][1] is None
    figure.canvas.draw()


def test_no_record_is_an_error() -> None:
    with pytest.raises(ValueError, match="no spectra to draw"):
        training_curves([])
