"""The archive of a study's results: what it holds, and that it is a function of the runs alone."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from study.run_folders import write_config, write_study

from examples.studies.pack import pack
from fanoise_lightning.study.comparison import compare

KEPT = {"config.yaml", "finished.json", "outcomes.json", "run.json", "scores.json"}


def write_finished(root: Path, seeds: range = range(3)) -> Path:
    """Two arms in one regime, as ``fanoise study`` leaves them, with files that are not packed."""
    write_study(root / "5 passes", {"none t0.1": 0.0, "image uniform 0.8": 0.2}, seeds)
    for folder in root.glob("*/*/seed-*"):
        regime, arm, seed = folder.relative_to(root).parts
        options = ["fit", f"--trainer.logger.save_dir={folder}", "--config=/some where/base.yaml"]
        plan = {"regime": regime, "arm": arm, "seed": int(seed.removeprefix("seed-")), "options": options}
        (folder / "run.json").write_text(json.dumps(plan))
        (folder / "finished.json").write_text('{"seconds": 1.0}')
        (folder / "spectrum.json").write_text('{"spectra": []}')
        (folder / "log.txt").write_text("not packed")
        write_config(folder, {"alpha": 0})
    return root


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder


def test_a_comparison_of_the_archive_is_that_of_the_runs(tmp_path):
    runs = write_finished(tmp_path / "runs")
    pack([runs], tmp_path / "a.tar.xz")
    known, found = (
        compare([root], "none*") for root in (runs, unpack(tmp_path / "a.tar.xz", tmp_path / "a"))
    )
    assert found.arms == known.arms
    assert found.scores == known.scores


def test_finished_runs_are_packed_and_what_their_results_are_alone(tmp_path):
    runs = write_finished(tmp_path / "runs")
    (runs / "5 passes/none t0.1/seed-2/finished.json").unlink()
    names = pack([runs], tmp_path / "a.tar.xz")
    assert len(names) == 5
    root = unpack(tmp_path / "a.tar.xz", tmp_path / "a")
    for folder in root.glob("*/*/*"):
        spectrum = {"spectrum.json"} if folder.name == "seed-0" else set()
        assert {file.name for file in folder.iterdir()} == KEPT | spectrum
    assert sorted(folder.relative_to(root).as_posix() for folder in root.glob("*/*/*")) == names


def test_the_bytes_depend_on_the_runs_alone(tmp_path):
    runs = write_finished(tmp_path / "runs")
    pack([runs], tmp_path / "a.tar.xz")
    for file in runs.rglob("*"):
        os.utime(file, (1e9, 1e9))
        file.chmod(0o700)
    pack(sorted(runs.glob("*/*/*"), reverse=True), tmp_path / "b.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.xz") as archive:
        members = archive.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_no_folder_of_the_machine_is_in_it(tmp_path):
    pack([write_finished(tmp_path / "runs")], tmp_path / "a.tar.xz")
    folder = unpack(tmp_path / "a.tar.xz", tmp_path / "a") / "5 passes/image uniform 0.8/seed-0"
    options = json.loads((folder / "run.json").read_text())["options"]
    assert options == ["fit", "--trainer.logger.save_dir=seed-0", "--config=base.yaml"]
    assert str(tmp_path) not in (folder / "config.yaml").read_text()


def test_what_cannot_be_packed_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no finished run"):
        pack([tmp_path / "empty"], tmp_path / "a.tar.xz")
    one, other = (write_finished(tmp_path / name) for name in ("one", "other"))
    with pytest.raises(ValueError, match=r"are both '5 passes/image uniform 0.8/seed-0'"):
        pack([one, other], tmp_path / "a.tar.xz")
    (one / "5 passes/none t0.1/seed-1/outcomes.json").unlink()
    with pytest.raises(ValueError, match=r"outcomes.json is missing"):
        pack([one], tmp_path / "a.tar.xz")
