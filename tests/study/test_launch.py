"""Studies that run, fail in part, and are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fanoise_lightning.__main__ import main
from fanoise_lightning.study import launch
from fanoise_lightning.study.launch import run_study
from fanoise_lightning.study.plan import Run, Study

RECIPE = Path(__file__).parents[2] / "examples" / "configs" / "emoji.yaml"
STUDY = """
config: {recipe}
seeds: [3]
baseline: none
arms:
  broken: {{model.encoder.init_args.model: absent.json}}
  none: {{noise.alpha: 0}}
  noise: {{noise.alpha: 0.5}}
regimes:
  short:
    model.encoder.init_args.model: {model}
    data.init_args.batch_size: 8
    data.init_args.num_workers: 0
    data.init_args.train_subsets: [keywords]
    data.init_args.eval_subsets: [keywords]
    trainer.max_steps: 3
    trainer.val_check_interval: 3
    trainer.log_every_n_steps: 1
    trainer.callbacks: []
"""


@pytest.fixture
def study(tmp_path: Path, tiny_clip: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(recipe=RECIPE, model=tiny_clip))
    return path


def results(folder: Path) -> dict[str, Any]:
    """What a study found, without how fast it was."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*.json")):
        if file.name in ("scores.json", "outcomes.json", "spectrum.json"):
            value = json.loads(file.read_text())
            if file.name == "scores.json":
                del value["metrics"]["train/pairs_per_second"]
            found[str(file.relative_to(folder))] = value
    return found


def start(study: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "fanoise_lightning",
        "study",
        str(study),
        f"--folder={folder}",
        "--workers=2",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def unfinished(folder: Path) -> Iterator[Path]:
    return (run.parent for run in folder.rglob("run.json") if not (run.parent / "finished.json").exists())


@pytest.mark.slow
def test_a_study_names_what_failed_and_one_that_was_killed_ends_as_one_that_was_not(study, tmp_path):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    failed = run_study(Study.load(study), unbroken, workers=2)
    assert list(failed) == [unbroken / "short" / "broken" / "seed-3"]
    assert "absent.json" in failed[unbroken / "short" / "broken" / "seed-3"]
    expected = results(unbroken)
    assert {Path(name).parts[1] for name in expected} == {"none", "noise"}

    first = start(study, killed)
    while not list(killed.rglob("log.txt")):
        time.sleep(0.1)
    time.sleep(4)  # a run is somewhere in its beginning; it outlives the study that started it
    os.kill(first.pid, signal.SIGKILL)
    run_study(Study.load(study), killed, workers=2)
    assert results(killed) == expected
    assert [run.parent.name for run in unfinished(killed)] == ["broken"]

    # what is finished is kept, unless the study has changed
    stamps = {file: file.stat().st_mtime_ns for file in killed.rglob("finished.json")}
    whole = Study.load(study)
    kept = {name: arm for name, arm in whole.arms.items() if name != "broken"}
    assert run_study(Study(whole.configs, kept, [3], "none", whole.regimes), killed) == {}
    assert stamps == {file: file.stat().st_mtime_ns for file in killed.rglob("finished.json")}
    changed = {**kept, "noise": {"noise.alpha": 0.25}}
    with pytest.raises(ValueError, match="holds a finished run of another configuration"):
        run_study(Study(whole.configs, changed, [3], "none", whole.regimes), killed)


def test_the_command_ends_with_an_error_if_a_run_failed(study, tmp_path, monkeypatch, capsys):
    asked = []

    def run(*arguments):
        asked.append(arguments)
        return failures

    monkeypatch.setattr("fanoise_lightning.study.study_command.run_study", run)
    failures = {tmp_path: "out of memory"}
    with pytest.raises(SystemExit, match="1 of 3 runs failed"):
        main(["study", str(study), "--folder=runs", "--workers=2", "--cluster={cluster: slurm}"])
    assert asked[0][1:] == ("runs", 2, {"cluster": "slurm"})
    failures = {}
    main(["study", str(study), "--folder=runs"])
    assert "fanoise compare 'runs/short' --baseline 'none'" in capsys.readouterr().out


def test_files_that_are_not_a_studys_are_not_removed(study, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    mine = tmp_path / "runs" / "short" / "none" / "seed-3" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years")
    with pytest.raises(
        ValueError, match=r"seed-3 holds files that are not a study's, and arm 'none' .* replace"
    ):
        run_study(Study.load(study), "~/runs")
    assert mine.read_text() == "years"


def test_a_start_that_was_cut_off_by_a_full_disk_can_be_repeated(tmp_path):
    run = Run("", "none", 3, [])
    (tmp_path / run.folder).mkdir(parents=True)
    (tmp_path / run.folder / "run.json.12.tmp").write_text("{")
    assert launch._prepare(run, tmp_path, "abc")
    assert json.loads((tmp_path / run.folder / "run.json").read_text())["seed"] == 3


def test_a_run_that_was_interrupted_did_not_fail(tmp_path):
    class Interrupted:
        stopped = True

        def run(self, folder: Path) -> int:
            (folder / "failed.json").write_text('{"error": "SIGTERMException"}')
            return 1

    assert launch._train(tmp_path, Interrupted()) == "interrupted"  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(study, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SystemExit, match=r"fanoise: .*runs"):
        main(["study", str(study), f"--folder={tmp_path / 'runs'}"])


def test_an_interrupt_says_how_to_resume(study, tmp_path, monkeypatch, capsys):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fanoise_lightning.study.study_command.run_study", interrupt)
    with pytest.raises(SystemExit) as end:
        main(["study", str(study), f"--folder={tmp_path / 'runs'}"])
    assert end.value.code == 130
    assert "run the study again to resume it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [("", 2, ["0", "1"]), ("2,3", 2, ["2", "3"]), ("GPU-a,GPU-b,GPU-c", 2, ["GPU-a", "GPU-b"]), ("", 0, [])],
)
def test_a_worker_gets_a_gpu_of_those_that_the_study_may_use(monkeypatch, visible, count, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: count)
    assert launch._gpus() == expected


def test_an_error_with_brackets_is_printed_as_it_is(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "_here", lambda folders, workers: [(folders[0], "no [/such] tag [red]")])
    assert list(run_study(Study.load(study), tmp_path / "runs").values()) == ["no [/such] tag [red]"]
    assert "no [/such] tag [red]" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [(["absent.yaml"], "absent.yaml"), ([], "`workers` must be at least 1, got 0")],
)
def test_the_command_names_what_cannot_be_run(study, tmp_path, options, message):
    path = options or [str(study)]
    with pytest.raises(SystemExit, match=f"fanoise: .*{message}"):
        main(["study", *path, f"--folder={tmp_path / 'runs'}", "--workers=0"])


def test_a_cluster_needs_submitit(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match="pip install submitit"):
        run_study(Study.load(study), tmp_path / "runs", cluster={"cluster": "local"})
