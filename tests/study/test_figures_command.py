"""``fanoise figures`` on each of its sources."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from study.run_folders import SUBSETS, TASKS, write_config, write_noise_study, write_study

from fanoise_lightning.__main__ import main
from fanoise_lightning.figures.spectra import side_spectrum
from fanoise_lightning.study.gallery import NEEDS

ARMS: dict[str, tuple[float, dict[str, Any]]] = {
    "none": (0.0, {"alpha": 0}),
    "sub 0.1": (0.1, {"alpha": 0.1}),
    "sub 0.5": (-0.1, {"alpha": 0.5}),
    "uni 0.1": (0.05, {"alpha": 0.1, "scaling": "uniform"}),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noise_study(tmp_path_factory.mktemp("study"), ARMS)


def figures(source: Path, output: Path, *options: str) -> dict[str, Any]:
    main(["figures", str(source), "--output", str(output), *options])
    written: dict[str, Any] = json.loads((output / "figures.json").read_text())
    assert set(written["figures"]) | set(written["missing"]) == set(NEEDS)
    names = {path.name for path in output.iterdir()} - {"figures.json"}
    assert names == {f"{name}.png" for name in written["figures"]}
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in names)
    return written


def score(root: Path, arm: str, seed: int, mean: str) -> float:
    won = json.loads((root / arm / f"seed-{seed}" / "outcomes.json").read_text())["outcomes"]
    means = {name: {*kind, "overall"} for name, kind in SUBSETS.items()}
    for name in TASKS:  # which both distributions have
        means[name].add(f"{SUBSETS[name][1]}_shared")
    return float(np.mean([np.mean(won[name]) for name in SUBSETS if mean in means[name]]))


def test_folders_may_be_in_the_home_of_the_user(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs").symlink_to(study)
    main(["figures", "~/runs", "--output=~/drawn"])
    assert (tmp_path / "drawn" / "law_bars.png").is_file()


def test_a_study_gives_curves_and_bars(study: Path, tmp_path: Path, capsys: Any) -> None:
    written = figures(study, tmp_path)
    assert set(written["figures"]) == {"alpha_curves", "law_bars"}
    curves = written["figures"]["alpha_curves"]
    assert set(curves) == {"IND", "OOD", "overall"}
    for mean in curves:
        assert [point["alpha"] for point in curves[mean]["sublinear"]] == [0.0, 0.1, 0.5]
        for point, arm in zip(curves[mean]["sublinear"], ("none", "sub 0.1", "sub 0.5")):
            scores = [100 * score(study, arm, seed, mean) for seed in range(4)]
            interval = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
            assert point["score"] == pytest.approx(np.mean(scores))
            assert point["interval"] == pytest.approx([interval.low, interval.high])
    bars = written["figures"]["law_bars"]  # at 0.1, which both laws have
    assert set(bars) == {"sublinear", "uniform"}
    assert set(bars["uniform"]) == {
        "retrieval",
        "vqa",
        "IND",
        "OOD",
        "IND_shared",
        "OOD_shared",
        "overall",
    }
    for mean, found in bars["uniform"].items():
        pairs = np.array([[score(study, arm, s, mean) for arm in ("uni 0.1", "none")] for s in range(4)])
        test = stats.ttest_rel(pairs[:, 0], pairs[:, 1])
        interval = test.confidence_interval(1 - 0.05 / 3)  # three arms, as in `fanoise compare`
        assert found["difference"] == pytest.approx(100 * (pairs[:, 0] - pairs[:, 1]).mean())
        assert found["interval"] == pytest.approx([100 * interval.low, 100 * interval.high])
    said = capsys.readouterr().out
    assert "no overlaps: needs a checkpoint and `--config`, for features" in said


def test_alpha_and_baseline_can_be_chosen(study: Path, tmp_path: Path) -> None:
    bars = figures(study, tmp_path, "--alpha", "0.5", "--baseline", "uni 0.1")["figures"]["law_bars"]
    pairs = [score(study, "sub 0.5", s, "OOD") - score(study, "uni 0.1", s, "OOD") for s in range(4)]
    assert list(bars) == ["sublinear"]
    assert bars["sublinear"]["OOD"]["difference"] == pytest.approx(100 * np.mean(pairs))


def test_an_alpha_that_no_arm_has_is_said_and_the_other_figure_drawn(study: Path, tmp_path: Path) -> None:
    written = figures(study, tmp_path, "--alpha", "0.3")
    assert set(written["figures"]) == {"alpha_curves"}
    assert written["missing"]["law_bars"] == "no arm has alpha 0.3: choose one of 0.1, 0.5"


def test_arms_that_lack_seeds_are_compared_on_those_in_common(tmp_path: Path) -> None:
    root = write_noise_study(tmp_path / "study", ARMS, range(3))
    (root / "uni 0.1" / "seed-2" / "scores.json").unlink()
    (root / "uni 0.1" / "seed-2" / "failed.json").write_text('{"error": "out of memory"}')
    written = figures(root, tmp_path / "out")
    pairs = [score(root, "uni 0.1", s, "overall") - score(root, "none", s, "overall") for s in range(2)]
    bars = written["figures"]["law_bars"]
    assert bars["uniform"]["overall"]["difference"] == pytest.approx(100 * np.mean(pairs))
    assert [note for note in written["notes"] if "out of memory" in note]


def test_of_a_study_with_regimes_one_is_drawn(tmp_path: Path) -> None:
    for regime, arms in (("long", ARMS), ("short", {arm: ARMS[arm] for arm in ("none", "sub 0.1")})):
        root = write_noise_study(tmp_path / "study" / regime, arms, range(2))
        for folder in root.glob("*/*"):
            write_config(folder, ARMS[folder.parent.name][1], data={"regime": regime})
    written = figures(tmp_path / "study", tmp_path / "out")
    assert len(written["figures"]["alpha_curves"]["OOD"]["sublinear"]) == 3
    pairs = [score(root.parent / "long", "uni 0.1", s, "IND") for s in range(2)]
    pairs = [ours - score(root.parent / "long", "none", s, "IND") for s, ours in enumerate(pairs)]
    assert written["figures"]["law_bars"]["uniform"]["IND"]["difference"] == pytest.approx(
        100 * np.mean(pairs)
    )
    assert len([note for note in written["notes"] if "'short/" in note]) == 2


def test_without_a_clean_arm_bars_need_a_baseline(tmp_path: Path) -> None:
    root = write_noise_study(tmp_path / "study", {arm: ARMS[arm] for arm in ("sub 0.1", "uni 0.1")}, range(2))
    written = figures(root, tmp_path / "out")
    assert "pass `--baseline`" in written["missing"]["law_bars"]
    assert [point["alpha"] for point in written["figures"]["alpha_curves"]["OOD"]["uniform"]] == [0.1]


def test_runs_without_a_configuration_give_nothing_and_it_is_said_why(tmp_path: Path, capsys: Any) -> None:
    root = write_study(tmp_path / "study", {"none": 0.0, "noise": 0.1}, range(2))
    with pytest.raises(SystemExit, match="gives none of the figures"):
        figures(root, tmp_path / "out")
    assert "no alpha_curves: no arm has noise with a known alpha: " in (said := capsys.readouterr().out)
    assert "has no config.yaml, which `fanoise fit` writes" in said


def test_runs_of_different_versions_are_not_mixed_unasked(tmp_path: Path) -> None:
    root = write_noise_study(tmp_path / "study", ARMS, range(2))
    path = root / "none" / "seed-0" / "scores.json"
    path.write_text(path.read_text().replace('"version": "1.0"', '"version": "1.1"'))
    with pytest.raises(SystemExit):
        figures(root, tmp_path / "out")
    written = figures(root, tmp_path / "out2", "--any_version", "true")
    assert set(written["figures"]) == {"alpha_curves", "law_bars"}


def spectra(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    clean = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    record = {"sides": {"query": side_spectrum(clean, clean + 0.1 * clean.flip(0))}, "alignment": 0.5}
    path = folder / "spectrum.json"
    path.write_text(json.dumps({"skipped_batches": 0, "spectra": [{"step": s, **record} for s in (0, 20)]}))
    return path


@pytest.mark.parametrize("whole_folder", [True, False])
def test_a_spectrum_gives_the_figures_of_a_training(tmp_path: Path, whole_folder: bool) -> None:
    path = spectra(tmp_path / "run")
    written = figures(path.parent if whole_folder else path, tmp_path / "out")
    assert set(written["figures"]) == {"noise_spectrum", "training_curves"}
    assert written["figures"]["training_curves"]["steps"] == [0, 20]
    assert written["missing"]["law_bars"] == NEEDS["law_bars"]


def test_the_folder_of_one_run_gives_its_spectra(study: Path, tmp_path: Path) -> None:
    root = write_noise_study(tmp_path / "study", {"none": ARMS["none"]}, range(1))
    spectra(root / "none" / "seed-0")
    written = figures(root / "none" / "seed-0", tmp_path / "out")
    assert set(written["figures"]) == {"noise_spectrum", "training_curves"}


@pytest.mark.parametrize("text", ["[]", "{", '{"spectra": [{"step": 1}]}', '{"spectra": [{"sides": []}]}'])
def test_a_file_that_is_no_spectrum_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "spectrum.json").write_text(text)
    with pytest.raises(SystemExit, match=r"spectrum\.json is not what SpectrumMonitor writes"):
        figures(tmp_path, tmp_path / "out")


def test_a_source_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        figures(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(SystemExit, match="`alpha` must be positive and finite, got 0"):
        figures(tmp_path, tmp_path / "out", "--alpha", "0")
    with pytest.raises(SystemExit, match=r"holds neither runs with scores\.json nor a spectrum\.json"):
        figures(tmp_path, tmp_path / "out")


@pytest.fixture
def data_config(tmp_path: Path) -> Path:
    empty = {"qry_image_path": "", "pos_image_path": ""}
    rows = [{"qry": f"query {i}", "pos_text": f"target {i}", **empty} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = {"source": str(tmp_path / "pairs.jsonl"), "batch_size": 8}
    config = {
        "data": {"class_path": "fanoise_lightning.PairDataModule", "init_args": arguments},
        "noise": {"alpha": 0.5},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "config.yaml"


def test_a_checkpoint_gives_the_figures_of_its_features(
    write_checkpoint: Callable[..., Path], data_config: Path, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint({"global_step": 7})
    written = figures(checkpoint, tmp_path / "out", "--config", str(data_config))
    found = written["figures"]
    assert set(found) == {"noise_spectrum", "overlaps", "gradient_bias"}
    query = found["noise_spectrum"]["query"]
    assert (query["batch_size"], query["dim"]) == (8, 24)  # of the data, and of the model
    assert np.square(query["clean"]).sum() == pytest.approx(8, rel=1e-4)  # unit rows
    for law in found["overlaps"]["laws"].values():  # at equal energy: alpha^2 a row
        assert law["noise_rms"] * 24**0.5 == pytest.approx(0.5, rel=0.25)
    assert set(found["overlaps"]["laws"]) == {"uniform", "linear", "sublinear"}
    assert written["notes"] == ["noise on the features: alpha 0.5, energy constant"]


def test_a_config_may_be_the_data_module_alone(
    write_checkpoint: Callable[..., Path], data_config: Path, tmp_path: Path
) -> None:
    data_config.write_text(yaml.safe_dump(yaml.safe_load(data_config.read_text())["data"]))
    options = ("--config", str(data_config), "--alpha", "0.2")
    written = figures(write_checkpoint(), tmp_path / "out", *options)
    assert written["notes"] == ["noise on the features: alpha 0.2, energy constant"]


def test_a_checkpoint_with_broken_weights_is_refused(
    saved_checkpoint: dict[str, Any], data_config: Path, tmp_path: Path
) -> None:
    weights = {name: torch.full_like(x, torch.nan) for name, x in saved_checkpoint["state_dict"].items()}
    torch.save({**saved_checkpoint, "state_dict": weights}, tmp_path / "broken.ckpt")
    with pytest.raises(SystemExit, match="features of the query side are not finite"):
        figures(tmp_path / "broken.ckpt", tmp_path / "out", "--config", str(data_config))


def test_what_a_checkpoint_lacks_is_said(
    write_checkpoint: Callable[..., Path], data_config: Path, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint()
    with pytest.raises(SystemExit, match="is a checkpoint: pass `--config` too"):
        figures(checkpoint, tmp_path / "out")
    with pytest.raises(SystemExit, match=r"none\.yaml does not exist"):
        figures(checkpoint, tmp_path / "out", "--config", str(tmp_path / "none.yaml"))
    data_config.write_text("model: {}")
    with pytest.raises(SystemExit, match="has no data module"):
        figures(checkpoint, tmp_path / "out", "--config", str(data_config))
    data_config.write_text("data: {class_path: fanoise_lightning.PairData}")
    with pytest.raises(SystemExit, match=r"(?s)the data module of .*PairData"):
        figures(checkpoint, tmp_path / "out", "--config", str(data_config))
