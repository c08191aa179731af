"""The notebook on studies runs without a network, and its numbers are those of the raw files."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from notebooks import FOLDER, run
from scipy import integrate, stats

NOTEBOOK = FOLDER / "read_a_study.ipynb"
ARCHIVE = FOLDER.parent / "studies" / "heads.tar.xz"
PROBE = """
print(json.dumps({
    "regimes": regimes,
    "names": [baseline, arm],
    "scores": scores.to_dict(),
    "typical": typical,
    "errors": errors,
    "compared": {name: [100 * found.difference, found.p_value] for name, found in effects.items()},
    "luck": {
        name: {count: pair.tolist() for count, pair in found.items()}
        for name, found in promised_and_kept.items()
    },
    "winners": dict(zip(counts, winners.tolist())),
    "confirmed": [winner.arm, confirmed.baseline, list(winner.seeds), select],
    "shown": shown,
    "gains": gains.map(lambda found: 100 * found.difference).to_dict(),
    "baselines": {name: c.baseline for name, c in comparisons.items()},
    "ranks": last,
    "left_over": runs.exists(),
}))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> SimpleNamespace:
    return run(NOTEBOOK.name, PROBE, tmp_path_factory.mktemp("jupyter"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def outcomes(folder: Path) -> np.ndarray:
    """What each query scored, %, out of distribution, in the tasks that both have: (K, Q)."""
    board = json.loads((folder / "scores.json").read_text())["scoreboard"]["subsets"]
    shared = [name for name, row in board.items() if row.get("task") and row["distribution"] == "OOD"]
    won = json.loads((folder / "outcomes.json").read_text())["outcomes"]
    return 100 * np.array([won[name] for name in shared])


def scores(regime: Path) -> dict[str, dict[str, float]]:
    """Arm to seed to score."""
    return {
        arm.name: {
            folder.name.removeprefix("seed-"): float(outcomes(folder).mean())
            for folder in sorted(arm.iterdir())
        }
        for arm in regime.iterdir()
    }


@pytest.mark.slow
def test_it_draws_its_figures_without_an_error_or_a_warning(executed):
    outputs = [output for cell in executed.cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 8


@pytest.mark.slow
def test_it_leaves_nothing_behind(executed):
    assert executed.left == []
    assert not executed.left_over


@pytest.mark.slow
def test_scores_and_their_spread_are_those_of_the_raw_files(executed, unpacked):
    regimes = [folder.name for folder in unpacked.iterdir()]
    assert executed.regimes == sorted(regimes, key=lambda name: int(name.split()[0]))
    known = scores(unpacked / executed.regimes[-1])
    assert executed.scores.keys() == known.keys()
    for arm, by_seed in known.items():
        assert executed.scores[arm] == pytest.approx(by_seed)
    variances = [np.var(list(by_seed.values()), ddof=1) for by_seed in known.values()]
    assert executed.typical == pytest.approx(np.sqrt(np.mean(variances)))


@pytest.mark.slow
def test_errors_with_pairs_and_without_are_those_of_scipy_and_brute_force(executed, unpacked):
    baseline, arm = executed.names
    a, b = (np.array(list(executed.scores[name].values())) for name in (arm, baseline))
    tests = (stats.ttest_ind(a, b, equal_var=False), stats.ttest_rel(a, b))
    for name, test in zip(("seeds, not paired", "seeds, paired"), tests):
        assert executed.errors[name] == pytest.approx((a - b).mean() / test.statistic)
    folders = [unpacked / executed.regimes[-1] / name for name in (arm, baseline)]
    ours, theirs = (np.mean([outcomes(run) for run in folder.iterdir()], axis=0) for folder in folders)
    count, queries = ours.shape

    def error(*parts: np.ndarray) -> float:
        return float(np.sqrt(sum(part.var(axis=1, ddof=1).sum() / queries for part in parts)) / count)

    assert executed.errors["queries, not paired"] == pytest.approx(error(ours, theirs))
    assert executed.errors["queries, paired"] == pytest.approx(error(ours - theirs))


@pytest.mark.slow
def test_arms_are_compared_with_the_best_one_without_noise(executed):
    means = {arm: np.mean(list(by_seed.values())) for arm, by_seed in executed.scores.items()}
    baseline = max((arm for arm in means if arm.startswith("none")), key=means.__getitem__)
    assert executed.names[0] == executed.baselines[executed.regimes[-1]] == baseline
    assert executed.compared.keys() == means.keys() - {baseline}
    for arm, (difference, p_value) in executed.compared.items():
        pair = [list(executed.scores[name].values()) for name in (arm, baseline)]
        assert difference == pytest.approx(means[arm] - means[baseline])
        assert p_value == pytest.approx(stats.ttest_rel(*pair).pvalue, rel=1e-3)


@pytest.mark.slow
def test_what_a_winner_promises_on_one_seed_and_keeps_on_others(executed):
    table = np.array([list(by_seed.values()) for by_seed in executed.scores.values()])  # (arms, seeds)
    leads = table - table.mean(axis=0)
    others = (leads.sum(axis=1, keepdims=True) - leads) / (leads.shape[1] - 1)
    winners = leads.argmax(axis=0)
    promised, kept = (x[winners, range(len(winners))].mean() for x in (leads, others))
    assert executed.luck[executed.regimes[-1]]["1"] == pytest.approx([promised, kept])
    for row in executed.luck.values():
        for promised, kept in row.values():
            assert promised >= kept - 1e-9  # which holds for means over all choices


@pytest.mark.slow
def test_the_luck_of_equal_arms_is_the_expected_largest_of_normal_numbers(executed):
    def weighted(x: float, count: int) -> float:
        return x * count * stats.norm.pdf(x) * stats.norm.cdf(x) ** (count - 1)

    for count, simulated in executed.winners.items():
        expected, _ = integrate.quad(weighted, -10, 10, args=(int(count),))
        assert simulated == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_what_is_confirmed_was_chosen_on_other_seeds(executed):
    winner, baseline, confirm, select = executed.confirmed
    assert not set(confirm) & set(select)
    assert {str(seed) for seed in [*confirm, *select]} == set(executed.scores[winner])

    def best(noise: bool) -> str:
        arms = [arm for arm in executed.scores if arm.startswith("none") != noise]
        return max(arms, key=lambda arm: np.mean([executed.scores[arm][str(seed)] for seed in select]))

    assert (winner, baseline) == (best(noise=True), best(noise=False))


@pytest.mark.slow
def test_each_regime_has_its_own_baseline(executed, unpacked):
    assert 1 <= len(executed.shown) <= 6
    for regime, baseline in executed.baselines.items():
        means = {arm: np.mean(list(row.values())) for arm, row in scores(unpacked / regime).items()}
        assert baseline == max((arm for arm in means if arm.startswith("none")), key=means.__getitem__)
        known = {arm: means[arm] - means[baseline] for arm in executed.gains[regime]}
        assert executed.gains[regime] == pytest.approx(known)


@pytest.mark.slow
def test_the_ranks_are_those_of_the_last_recorded_spectra(executed, unpacked):
    for name, sides in executed.ranks.items():
        file = min((unpacked / executed.regimes[-1] / name).glob("*/spectrum.json"))
        last = json.loads(file.read_text())["spectra"][-1]["sides"]
        for side, rank in sides.items():
            shares = np.array(last[side]["clean"]) / np.sum(last[side]["clean"])
            assert rank == pytest.approx(np.exp(stats.entropy(shares)), rel=1e-4)


def test_it_is_committed_without_outputs():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert not [cell for cell in cells if cell.outputs or cell.execution_count]


def test_the_archive_is_small_and_names_no_folder_of_a_machine(unpacked):
    assert ARCHIVE.stat().st_size < 2_000_000
    for file in unpacked.rglob("*"):
        if file.name in ("run.json", "config.yaml"):
            words = ("/home", "/tmp", "/root", "/Users", "/work")
            assert not [word for word in words if word in file.read_text()], file
