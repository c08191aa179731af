"""Comparisons of runs, against scipy and brute force."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from study.run_folders import SUBSETS, outcomes, write_run, write_study

from fanoise_lightning.__main__ import main
from fanoise_lightning.study.comparison import compare
from fanoise_lightning.study.effects import effect
from fanoise_lightning.study.report import markdown, verdict

GAINS = {"none": 0.0, "helps": 0.15, "hurts": -0.15, "nothing": 0.0}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), GAINS)


def by_hand(root: Path, arm: str, seed: int, subsets: list[str]) -> float:
    won = json.loads((root / arm / f"seed-{seed}" / "outcomes.json").read_text())["outcomes"]
    return float(np.mean([np.mean(won[name]) for name in subsets]))


@pytest.mark.parametrize("mean", ["overall", "IND", "OOD", "retrieval", "vqa"])
def test_a_difference_is_that_of_unweighted_means_paired_by_seed(study, mean):
    own = [name for name, kind in SUBSETS.items() if mean in (*kind, "overall")]
    (arm, *_) = [a for a in compare([study], "none", by=mean).arms if a.arm == "helps"]
    pairs = np.array([[by_hand(study, name, s, own) for name in ("helps", "none")] for s in range(6)])
    found = arm.means[mean]
    assert found.difference == pytest.approx((pairs[:, 0] - pairs[:, 1]).mean())
    test = stats.ttest_rel(pairs[:, 0], pairs[:, 1])
    assert found.seeds == pytest.approx(tuple(test.confidence_interval(1 - 0.05 / 3)))
    assert found.p_value == pytest.approx(test.pvalue)


def test_the_tasks_that_both_distributions_share_have_means_of_their_own(study):
    arm = compare([study], "none", by="OOD_shared").arms[0]
    assert arm.means["IND_shared"].difference == pytest.approx(arm.subsets["plain"].difference)
    assert arm.means["OOD_shared"].difference == pytest.approx(arm.subsets["far"].difference)
    assert arm.means["IND_shared"].difference != pytest.approx(arm.means["IND"].difference)


def test_p_values_are_corrected_for_the_number_of_arms(study):
    arms = compare([study], "none").arms
    raw = sorted(arm.means["overall"].p_value for arm in arms)
    holm = np.minimum(np.maximum.accumulate([raw[0] * 3, raw[1] * 2, raw[2]]), 1)
    assert sorted(arm.p_value for arm in arms) == pytest.approx(list(holm))


def test_verdicts_claim_what_the_intervals_hold(study):
    comparison = compare([study], "none")
    verdicts = {arm.arm: verdict(comparison, arm) for arm in comparison.arms}
    assert verdicts["helps"].startswith("gains ")
    assert verdicts["hurts"].startswith("costs ")
    assert verdicts["nothing"].startswith("no difference seen on overall; one of ")
    low, high = comparison.arms[0].means["overall"].seeds
    assert f"{100 * low:.1f} to {100 * high:.1f} points" in verdicts["helps"]


def test_the_interval_for_other_seeds_covers_the_truth_as_often_as_it_says():
    rng, trials, hits = np.random.default_rng(0), 800, 0
    for _ in range(trials):
        by_seed = 0.03 + rng.normal(0, 0.02, (5, 1))  # the truth, and what a seed adds
        found = effect({"a": by_seed + rng.normal(0, 0.3, (5, 50))}, 0.9)
        hits += found.seeds[0] < 0.03 < found.seeds[1]
    assert abs(hits / trials - 0.9) < 3 * (0.9 * 0.1 / trials) ** 0.5


def test_the_interval_for_other_queries_covers_the_truth_as_often_as_it_says():
    rng, trials, hits = np.random.default_rng(1), 800, 0
    for _ in range(trials):
        subsets = {name: 0.02 + rng.normal(0, 0.5, (1, 300)) + rng.normal(0, 0.1, (3, 300)) for name in "abc"}
        found = effect(subsets, 0.9)
        hits += found.queries[0] < 0.02 < found.queries[1]
    assert abs(hits / trials - 0.9) < 3 * (0.9 * 0.1 / trials) ** 0.5


def test_with_six_arms_without_an_effect_a_gain_or_cost_is_rarely_seen():
    rng, trials, false = np.random.default_rng(2), 300, 0
    for _ in range(trials):
        base = rng.normal(0, 1, (5, 1))
        found = [effect({"a": rng.normal(0, 1, (5, 1)) - base}, 1 - 0.05 / 6) for _ in range(6)]
        false += any(f.seeds[0] > 0 or f.seeds[1] < 0 for f in found)
    assert false / trials < 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_the_detectable_difference_is_found_four_times_out_of_five():
    rng, trials, seen = np.random.default_rng(3), 1500, 0
    truth = (
        np.mean([effect({"a": rng.normal(0, 0.02, (6, 1))}, 0.95).detectable ** 2 for _ in range(500)]) ** 0.5
    )
    for _ in range(trials):
        seen += effect({"a": truth + rng.normal(0, 0.02, (6, 1))}, 0.95).p_value < 0.05
    assert abs(seen / trials - 0.8) < 0.04


def test_what_was_chosen_on_some_seeds_is_confirmed_on_others(tmp_path):
    root = write_study(tmp_path, {"none a": 0.0, "none b": 0.1, "small": 0.12, "large": 0.3}, range(8))
    comparison = compare([root], "none*", select=[0, 1, 2], confirm=[3, 4, 5, 6, 7])
    assert comparison.baseline == "none b"
    assert [(arm.arm, arm.seeds) for arm in comparison.arms] == [("large", (3, 4, 5, 6, 7))]
    assert comparison.confidence == 0.95
    assert "chosen on the seeds 0, 1, 2" in markdown(comparison)


def test_a_query_that_one_run_skipped_leaves_both(tmp_path):
    for arm in ("none", "noise"):
        won = outcomes(0)
        if arm == "noise":
            won["far"][:50] = [None] * 50
        write_run(tmp_path / arm / "a", 0, won)
        write_run(tmp_path / arm / "b", 1, outcomes(1))
    (arm,) = compare([tmp_path], "none").arms
    assert (arm.skipped, arm.alike, arm.means["OOD"].difference) == (50, True, 0)
    assert "50 outcomes are not compared" in markdown(compare([tmp_path], "none"))


def test_runs_made_by_hand_may_lie_anywhere(tmp_path):
    """Lightning's own folders: the seed is in the record, not in the name."""
    folders = [
        write_run(tmp_path / "logs" / arm / f"version_{v}", seed, outcomes(seed, gain))
        for arm, gain in (("base", 0.0), ("noise", 0.2))
        for v, seed in enumerate((7, 3))
    ]
    (arm,) = compare(folders, "base").arms
    assert (arm.arm, arm.seeds) == ("noise", (3, 7))


def test_one_seed_says_nothing_about_others(tmp_path):
    root = write_study(tmp_path, {"none": 0.0, "noise": 0.2}, range(1))
    comparison = compare([root], "none")
    assert comparison.arms[0].means["overall"].seeds is None
    assert "a single seed" in verdict(comparison, comparison.arms[0])


def test_seeds_that_agree_by_chance_say_nothing_about_others(tmp_path):
    root = write_study(tmp_path, {"none": 0.0}, range(2))
    for seed in range(2):
        won = outcomes(seed)
        won["plain"] = [1.0] * 20 + won["plain"][20:]
        won["plain"][20:] = outcomes(0)["plain"][20:]
        write_run(root / "noise" / f"seed-{seed}", seed, won)
        base = {**outcomes(seed), "plain": [0.0] * 20 + outcomes(0)["plain"][20:]}
        shutil.rmtree(root / "none" / f"seed-{seed}")
        write_run(root / "none" / f"seed-{seed}", seed, base)
    comparison = compare([root], "none")
    found = comparison.arms[0].means["overall"]
    assert found.per_seed == pytest.approx((1 / 30, 1 / 30))
    assert (found.seeds, found.p_value, found.detectable) == (None, None, None)
    assert "+3.3 on overall in every seed: too few seeds" in verdict(comparison, comparison.arms[0])


def test_scores_of_a_run_before_it_failed_or_was_killed_are_not_those_of_its_arm(tmp_path):
    root = write_study(tmp_path, {"none": 0.0, "noise": 0.2}, range(4))
    (root / "noise" / "seed-1" / "failed.json").write_text('{"error": "out of memory"}')
    for seed in (2, 3):
        (root / "noise" / f"seed-{seed}" / "run.json").write_text("{}")
    (root / "noise" / "seed-2" / "finished.json").write_text("{}")
    with pytest.raises(ValueError, match=r"arm 'noise' has the seeds \[0, 2\], the baseline"):
        compare([root], "none")
    comparison = compare([root], "none", common_seeds=True)
    assert comparison.arms[0].seeds == (0, 2)
    assert [f.folder.name for f in comparison.failures] == ["seed-1", "seed-3"]
    assert "not finished" in markdown(comparison)


def test_a_failed_run_is_named_and_the_rest_goes_on(tmp_path):
    root = write_study(tmp_path, {"none": 0.0, "noise": 0.2}, range(3))
    (root / "broken" / "seed-0").mkdir(parents=True)
    (root / "broken" / "seed-0" / "failed.json").write_text('{"error": "out of memory"}')
    comparison = compare([root], "none")
    assert [(f.arm, f.error) for f in comparison.failures] == [("broken", "out of memory")]
    assert "out of memory" in markdown(comparison)


def damaged(root: Path, change: str) -> dict[str, Any]:
    """A study with one fault; further arguments of compare."""
    run = root / "noise" / "seed-1"
    scores = json.loads((run / "scores.json").read_text())
    won = json.loads((run / "outcomes.json").read_text())
    if change == "version":
        scores["run"]["version"] = "2.0"
    elif change == "data":
        scores["run"]["data"] = "xyz"
    elif change == "subsets":
        del scores["scoreboard"]["subsets"]["far"]
    elif change == "queries":
        won["outcomes"]["far"].append(1)
    elif change == "no seed":
        scores["run"]["seed"] = None
    elif change == "other step":
        won["step"] = 200
    elif change == "above one":
        won["outcomes"]["far"][0] = 2
    elif change == "none scored":
        won["outcomes"]["far"] = [None] * 200
    elif change == "text":
        won["outcomes"]["far"][0] = "won"
    elif change == "twice":
        write_run(root / "noise" / "again", 1, won["outcomes"])
    elif change == "seeds":
        (run / "scores.json").unlink()
        return {}
    elif change == "deep":
        (run / "scores.json").write_text("[" * 100_000)
        return {}
    elif change == "list":
        (run / "scores.json").write_text("[]")
        return {}
    elif change == "no outcomes":
        (run / "outcomes.json").unlink()
        return {}
    (run / "scores.json").write_text(json.dumps(scores))
    (run / "outcomes.json").write_text(json.dumps(won))
    return {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("version", r"made by versions 1.0 and 2.0"),
        ("data", r"different data, though the subsets have the same names"),
        ("subsets", r"different subsets: far"),
        ("queries", r"200 and 201 queries in subset 'far'"),
        ("no seed", r"scores\.json: the run has no seed"),
        ("other step", r"of step 300, outcomes\.json of step 200"),
        ("above one", r"outcomes must be numbers from 0 to 1"),
        ("none scored", r"only one of them scored any query of subset 'far'"),
        ("text", r"are not those of a run"),
        ("twice", r"are both arm 'noise' with seed 1"),
        ("seeds", r"arm 'noise' has the seeds \[0, 2\], the baseline 'none' \[0, 1, 2\]"),
        ("deep", r"scores\.json cannot be read"),
        ("list", r"scores\.json holds list, expected an object"),
        ("no outcomes", r"has no outcomes\.json"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path, change, message):
    root = write_study(tmp_path, {"none": 0.0, "noise": 0.2}, range(3))
    options = damaged(root, change)
    with pytest.raises(ValueError, match=message):
        compare([root], "none", **options)


def test_versions_and_seeds_are_compared_if_asked(tmp_path):
    root = write_study(tmp_path, {"none": 0.0, "noise": 0.2}, range(3))
    damaged(root, "version")
    (root / "noise" / "seed-2" / "scores.json").unlink()
    (arm,) = compare([root], "none", any_version=True, common_seeds=True).arms
    assert arm.seeds == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "nome"}, r"no arm matches the baseline 'nome'; did you mean 'none'\?"),
        ({"baseline": "*"}, r"every arm matches"),
        ({"baseline": "n*"}, r"several arms match the baseline 'n\*': none, nothing; pass `select`"),
        ({"by": "OOS"}, r"unknown mean `OOS`; did you mean `OOD`"),
        ({"select": [0, 1], "confirm": [1, 2]}, r"the seeds \[1\] are both to select and to confirm"),
        ({"select": [0, 1]}, r"go together"),
        ({"select": [0], "confirm": [9]}, r"has no run with the seeds \[9\]"),
    ],
)
def test_a_question_without_an_answer_is_refused(study, options, message):
    with pytest.raises(ValueError, match=message):
        compare([study], **{"baseline": "none", **options})


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="contains no run"):
        compare([tmp_path], "none")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        compare([tmp_path / "absent"], "none")


def test_the_command_prints_and_writes(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs").symlink_to(study)
    main(["compare", "~/runs", "--baseline", "none", "--by", "OOD", "--output=~/out"])
    assert "helps" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["by"] == "OOD"
    assert [arm["arm"] for arm in written["arms"]] == ["helps", "hurts", "nothing"]
    assert written["arms"][0]["verdict"].startswith("gains ")
    assert (tmp_path / "out" / "comparison.md").read_text().startswith("# Against 'none'")
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="did you mean 'none'"):
        main(["compare", str(study), "--baseline", "nome"])
