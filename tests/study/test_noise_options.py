"""Which arms are on which curve, from the configurations that runs keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from study.run_folders import write_config, write_noise_study

from fanoise_lightning.study.noise_options import noise_lines, read_options
from fanoise_lightning.study.records import read_runs

ARMS: dict[str, tuple[float, dict[str, Any]]] = {
    "none": (0.0, {"alpha": 0}),
    "sub 0.1": (0.0, {"alpha": 0.1}),
    "sub 0.5": (0.0, {"alpha": 0.5}),
    "uni 0.1": (0.0, {"alpha": 0.1, "scaling": "uniform"}),
}


def lines(root: Path) -> Any:
    return noise_lines(read_runs([root])[0])


def test_arms_are_sorted_by_law_and_alpha_and_share_the_one_without_noise(tmp_path: Path) -> None:
    found = lines(write_noise_study(tmp_path, ARMS, range(2)))
    assert found.lines == {
        "sublinear": {0.0: "none", 0.1: "sub 0.1", 0.5: "sub 0.5"},
        "uniform": {0.0: "none", 0.1: "uni 0.1"},
    }
    assert list(found.lines["sublinear"]) == [0.0, 0.1, 0.5]
    assert found.left_out == []


def test_other_options_of_the_noise_make_a_line_of_their_own(tmp_path: Path) -> None:
    more = {
        "constant": (0.0, {"alpha": 0.1, "energy": "constant"}),
        "both": (0.0, {"alpha": 0.1, "sides": ["query", "target"]}),
    }
    found = lines(write_noise_study(tmp_path, {**ARMS, **more}, range(1)))
    assert found.lines["sublinear, energy paper, sides query"] == {
        0.0: "none",
        0.1: "sub 0.1",
        0.5: "sub 0.5",
    }
    assert found.lines["sublinear, energy constant, sides query"] == {0.0: "none", 0.1: "constant"}
    assert found.lines["sublinear, energy paper, sides query+target"] == {0.0: "none", 0.1: "both"}


def test_an_arm_that_differs_in_more_than_its_noise_is_left_out(tmp_path: Path) -> None:
    root = write_noise_study(tmp_path, {**ARMS, "warmer": (0.0, {"alpha": 0})}, range(2))
    for seed in range(2):
        write_config(root / "warmer" / f"seed-{seed}", {"alpha": 0}, model={"temperature": 0.1})
    found = lines(root)
    assert found.left_out == ["arm 'warmer' differs in more than its noise from 'none' and others"]
    assert all("warmer" not in line.values() for line in found.lines.values())


def test_arms_with_the_same_noise_are_not_mixed(tmp_path: Path) -> None:
    again = {"again": (0.0, {"alpha": 0.1}), "zero": (0.0, {"alpha": 0, "scaling": "linear"})}
    found = lines(write_noise_study(tmp_path, {**ARMS, **again}, range(1)))
    assert set(found.left_out) == {
        "arm 'sub 0.1' has the noise of 'again'",
        "arm 'zero' has alpha 0, like 'none'",
    }


def test_runs_of_an_arm_with_different_options_are_left_out(tmp_path: Path) -> None:
    root = write_noise_study(tmp_path, ARMS, range(2))
    write_config(root / "sub 0.5" / "seed-1", {"alpha": 0.4})
    found = lines(root)
    (reason,) = found.left_out
    assert reason.startswith("runs of arm 'sub 0.5' have different options, such as ")
    assert found.lines["sublinear"] == {0.0: "none", 0.1: "sub 0.1"}


def test_the_seed_and_where_a_run_writes_are_no_options(tmp_path: Path) -> None:
    root = write_noise_study(tmp_path, {"a": (0.0, {"alpha": 0.1, "seed": 3})}, range(2))
    write_config(root / "a" / "seed-1", {"alpha": 0.1, "seed": 4})
    first, second = (read_options(root / "a" / f"seed-{seed}") for seed in range(2))
    assert first == second


def test_what_is_no_configuration_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.yaml, which `fanoise fit` writes"):
        read_options(tmp_path)
    config = tmp_path / "config.yaml"
    for text in ("[]", "noise: 3", "noise: {scaling: linear}", "a: [", "", "noise: {alpha: {b: 1}}"):
        config.write_text(text)
        with pytest.raises(ValueError, match=r"config\.yaml"):
            read_options(tmp_path)


def test_a_schedule_of_alpha_has_no_place_on_the_axis(tmp_path: Path) -> None:
    schedule = {"class_path": "fanoise_lightning.LinearAlpha", "init_args": {"start": 0.1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"noise": {"alpha": schedule}}))
    with pytest.raises(ValueError, match="alpha is a schedule, not a number"):
        read_options(tmp_path)
