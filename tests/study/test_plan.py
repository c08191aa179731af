"""Studies as they are written down."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fanoise_lightning.study.plan import Study, parse_seeds
from fanoise_lightning.study.resolve import fingerprints

RECIPE = Path(__file__).parents[2] / "examples" / "configs" / "emoji.yaml"

STUDY = """
config: base.yaml
seeds: 0-2
baseline: none
arms:
  none: {noise.alpha: 0}
  noise 0.5: {noise.alpha: 0.5, "noise.sides": [query]}
regimes:
  short: {trainer.max_steps: 3}
  long: {trainer.max_steps: 9}
"""


def write(folder: Path, text: str = STUDY) -> Path:
    (folder / "base.yaml").write_text(RECIPE.read_text())
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_every_arm_runs_under_every_seed_in_every_regime_seed_by_seed(tmp_path):
    runs = list(Study.load(write(tmp_path)).runs())
    assert [(run.seed, run.regime, run.arm) for run in runs] == [
        (seed, regime, arm)
        for seed in range(3)
        for regime in ("short", "long")
        for arm in ("none", "noise 0.5")
    ]
    assert runs[-1].folder == Path("long", "noise 0.5", "seed-2")
    assert runs[-1].options == [
        f"--config={tmp_path / 'base.yaml'}",
        "--trainer.max_steps=9",
        "--noise.alpha=0.5",
        '--noise.sides=["query"]',
        "--seed_everything=2",
    ]


def test_an_arm_wins_over_its_regime(tmp_path):
    path = write(
        tmp_path, STUDY.replace("none: {noise.alpha: 0}", "none: {noise.alpha: 0, trainer.max_steps: 1}")
    )
    assert "--trainer.max_steps=1" in next(Study.load(path).runs()).options


@pytest.mark.parametrize(
    ("value", "seeds"), [("0-3, 8", [0, 1, 2, 3, 8]), (7, [7]), ([1, "4-5"], [1, 4, 5]), ("12", [12])]
)
def test_seeds_are_numbers_and_ranges(value, seeds):
    assert parse_seeds(value) == seeds


@pytest.mark.parametrize("value", ["", "a", "3-1", -1, 1.5, None, [[1]], "0-99999999"])
def test_other_seeds_are_refused(value):
    with pytest.raises(ValueError, match="`seeds` must be numbers or ranges such as 0-11, got"):
        parse_seeds(value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("arms:", "armss:", r"unknown key `armss`; did you mean `arms`"),
        ("seeds: 0-2", "", r"`seeds` is missing"),
        ("seeds: 0-2", "seeds: [1, 1]", r"the seeds \[1\] are given twice"),
        ("baseline: none", "baseline: nome", r"unknown baseline `nome`; did you mean `none`"),
        ("none: {noise.alpha: 0}", "none: 0", r"`arms`, 'none': expected options"),
        (
            'noise 0.5: {noise.alpha: 0.5, "noise.sides": [query]}',
            "other: {}",
            r"arm 'other' changes nothing",
        ),
        ("none: {noise.alpha: 0}", "none: {noise.alpha: 0}\n  none: {}", r"the key 'none' is given twice"),
        ("noise 0.5", "../up", r"the arm '../up' cannot name a folder"),
        ("noise 0.5", "NONE", r"the arms 'none' and 'NONE' differ in case alone"),
        ("noise.alpha: 0}", "--noise.alpha: 0}", r"'--noise.alpha' is not an option"),
        ("config: base.yaml", "config: absent.yaml", r"absent.yaml does not exist"),
        ("arms:", "arms: [", r"study.yaml: "),
        ("noise.alpha: 0}", "trainer.max_time: 2026-01-01}", r"`trainer.max_time` is datetime.date\(2026"),
        ("{noise.alpha: 0}", "&arm {noise.alpha: *arm}", r"`noise.alpha` is {.*expected a number"),
        ("none: {noise", "0.1: {noise.alpha: 3}\n  0.10: {noise", r"line 6: the key 0.1 is given twice"),
        ("none: {noise", "no: {noise", r"`arms`: YAML reads a name as False: put it in quotes"),
        ("none: {noise", "~: {noise", r"`arms`: YAML reads a name as None: put it in quotes"),
        ("noise 0.5", "ä" * 128, r"is of 256 bytes, and a folder's name of 255 at most"),
    ],
)
def test_a_fault_is_named(tmp_path, old, new, message):
    assert old in STUDY
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Study.load(write(tmp_path, STUDY.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ("seed_everything: 3", "seed_everything"),
        ("trainer.logger.name: a", "trainer.logger.name"),
        ("trainer: {logger: false}", "trainer.logger"),
        ("scoreboard: {path: here}", "scoreboard.path"),
        ("spectrum.path: here", "spectrum.path"),
    ],
)
def test_what_the_study_sets_is_refused(tmp_path, given, option):
    with pytest.raises(ValueError, match=rf"arm 'none' sets `{option}`, which the study sets"):
        Study.load(write(tmp_path, STUDY.replace("noise.alpha: 0", given, 1)))


def test_anchors_and_infinity_are_those_of_yaml(tmp_path):
    none = "none: &none {noise.alpha: 0, trainer.max_steps: 4}"
    arms = f"{none}\n  b: {{<<: *none, trainer.gradient_clip_val: .inf}}"
    path = write(tmp_path, STUDY.replace("none: {noise.alpha: 0}", arms))
    study = Study.load(path)
    assert study.arms["b"] == {
        "noise.alpha": 0,
        "trainer.max_steps": 4,
        "trainer.gradient_clip_val": math.inf,
    }
    assert len(set(fingerprints(study).values())) == 4  # max_steps of two arms win over both regimes


def test_each_configuration_has_a_fingerprint_of_its_own(tmp_path):
    study = Study.load(write(tmp_path))
    found = fingerprints(study)
    assert len(found) == len(set(found.values())) == 4
    assert found == fingerprints(study)
    (tmp_path / "base.yaml").write_text(RECIPE.read_text().replace("batch_size: 128", "batch_size: 64"))
    assert not set(fingerprints(study).values()) & set(found.values())


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            "{noise.alpha: 0.1}",
            r"arm 'noise 0.5' in regime 'short' changes nothing: the config has these values",
        ),
        ("{noise.alpha: 0.0}", r"the arms 'none' and 'noise 0.5' are alike in regime 'short'"),
        (
            "{noise.alfa: 1}",
            r"^arm 'noise 0.5' in regime 'short': unrecognized.*alfa=1; did you mean `--noise.alpha`",
        ),
        ("{noise.scaling: cubic}", r"arm 'noise 0.5' in regime 'short': .*cubic"),
    ],
)
def test_arms_that_could_not_run_or_are_not_two_are_found_before_anything_runs(tmp_path, arm, message):
    path = write(tmp_path, STUDY.replace('{noise.alpha: 0.5, "noise.sides": [query]}', arm))
    with pytest.raises(ValueError, match="(?s)" + message):
        fingerprints(Study.load(path))


def test_two_regimes_that_are_alike_are_found(tmp_path):
    path = write(tmp_path, STUDY.replace("long: {trainer.max_steps: 9}", "long: {trainer: {max_steps: 3}}"))
    with pytest.raises(ValueError, match="the regimes 'short' and 'long' are alike"):
        fingerprints(Study.load(path))
