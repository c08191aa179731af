from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fanoise_lightning import ContrastiveModule
from fanoise_lightning.__main__ import main
from fanoise_lightning.cli import FANoiseCLI
from fanoise_lightning.training.checkpoints import AtomicCheckpointIO

CONFIGS = sorted((Path(__file__).parents[1] / "examples" / "configs").glob("*.yaml"))
OFFLINE = next(path for path in CONFIGS if path.stem == "emoji")


def arguments(config: Path, command: str, folder: Path, *more: str) -> list[str]:
    return [
        command,
        f"--config={config}",
        "--trainer.accelerator=cpu",
        f"--trainer.logger.init_args.save_dir={folder}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--data.init_args.num_workers=0",
        "--data.init_args.batch_size=32",
        "--data.init_args.eval_subsets=[renderer]",
        *more,
    ]


@pytest.fixture(scope="module", autouse=True)
def no_arguments():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["fanoise"])  # Lightning warns of pytest's
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two steps of the main job, with a validation at the end: the folder that it wrote."""
    folder = tmp_path_factory.mktemp("run")
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
    main(arguments(OFFLINE, "fit", folder, *short))
    return folder / "emoji" / "version_0"


def test_a_fit_writes_scores_spectra_figure_and_checkpoint(run):
    scores = json.loads((run / "scores.json").read_text())
    assert scores["step"] == 2
    assert set(scores["scoreboard"]["subsets"]) == {"renderer"}
    assert (run / "spectrum.png").stat().st_size > 10_000
    assert json.loads((run / "spectrum.json").read_text())["spectra"][0]["sides"]["query"]["noise"]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    header = (run / "metrics.csv").read_text().splitlines()[0]
    for name in (
        "train/loss",
        "fanoise/effective_rank",
        "fanoise/noise_to_signal",
        "fanoise/skipped_batches",
    ):
        assert name in header


def test_the_checkpoint_of_a_run_reloads_alone(run):
    module = ContrastiveModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert module.encoder.model == "emoji-resnet"
    assert isinstance(module._optimizer(module.parameters()), torch.optim.AdamW)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluating_a_checkpoint_scores_that_checkpoint(run, tmp_path, command):
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    main(arguments(OFFLINE, command, tmp_path, checkpoint))
    name = "scores.json" if command == "validate" else "test_scores.json"
    (written,) = tmp_path.rglob(name)
    expected = json.loads((run / "scores.json").read_text())["scoreboard"]
    assert json.loads(written.read_text())["scoreboard"] == expected


def test_a_checkpoint_alone_is_validated_and_the_run_says_what_it_wrote(run, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    with caplog.at_level("INFO", logger="fanoise_lightning"):
        main(["validate", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", *quiet])
    (written,) = tmp_path.rglob("scores.json")
    assert caplog.messages[-1].startswith(f"wrote to {written.parent.relative_to(tmp_path)}: ")
    assert "scores.json" in caplog.messages[-1]
    expected = json.loads((run / "scores.json").read_text())["scoreboard"]
    assert json.loads(written.read_text())["scoreboard"] == expected


def test_predict_writes_embeddings_with_the_embedding_writer(run, tmp_path):
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    writer = "--trainer.callbacks=fanoise_lightning.callbacks.EmbeddingWriter"
    main(arguments(OFFLINE, "predict", tmp_path, checkpoint, writer))
    (written,) = tmp_path.rglob("renderer.safetensors")
    embeddings = load_file(written)["embeddings"]
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(len(embeddings)), atol=1e-4)


def with_description(run: Path, folder: Path, **parts: Any) -> str:
    """The option of the run's checkpoint, with other descriptions in it."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"] |= parts
    torch.save(checkpoint, folder / "changed.ckpt")
    return f"--ckpt_path={folder / 'changed.ckpt'}"


@pytest.fixture
def imported(tmp_path, monkeypatch) -> Path:
    """A file that is there when the package ``their_code`` has been imported."""
    (tmp_path / "their_code.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w')\n"
        "from fanoise_lightning import InfoNCE\nfrom torch.optim import SGD\n"
        "class Loss(InfoNCE): pass\nclass Rate(SGD): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "imported"
    sys.modules.pop("their_code", None)


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The module that a command builds, and then stops."""

    class Built(Exception):
        pass

    def stop(cli: FANoiseCLI) -> None:
        raise Built(cli.model)

    def build(command: str, *more: str) -> ContrastiveModule:
        monkeypatch.setattr(FANoiseCLI, f"before_{command}", stop)
        with pytest.raises(Built) as stopped:
            main(arguments(OFFLINE, command, tmp_path, *more))
        return stopped.value.args[0]

    return build


OWN = {"class_path": "their_code.Loss", "init_args": {"temperature": 0.3}}


@pytest.mark.parametrize(
    ("command", "key"), [("fit", "loss"), ("validate", "encoder"), ("test", "loss"), ("predict", "loss")]
)
def test_a_checkpoint_names_no_class_of_others(run, tmp_path, imported, command, key):
    with pytest.raises(SystemExit, match=rf"`{key}` is refused.*'their_code\.Loss'.*`--allow=their_code`"):
        main(arguments(OFFLINE, command, tmp_path, with_description(run, tmp_path, **{key: OWN})))
    assert not imported.exists()


@pytest.mark.parametrize(
    "word", ["--allow=their_code", "--allow=[os, their_code.Loss]", "--model.loss=their_code.Loss"]
)
@pytest.mark.usefixtures("imported")
def test_with_the_users_word_it_does(run, tmp_path, built, word):
    module = built("validate", with_description(run, tmp_path, loss=OWN), word)
    assert (type(module.loss).__name__, module.loss.temperature) == ("Loss", 0.3)


@pytest.mark.parametrize(("key", "path"), [("optimizer", "os.system"), ("lr_scheduler", "their_code.Rate")])
def test_optimiser_and_schedule_are_checked_for_a_fit_and_passed_by_without(
    run, tmp_path, imported, built, key, path
):
    part = {"class_path": path, "init_args": {"command": f"touch {tmp_path / 'ran'}"}}
    checkpoint = with_description(run, tmp_path, **{key: part})
    with pytest.raises(SystemExit, match=f"`{key}` is refused.*{path}"):
        built("fit", checkpoint)
    module = built("validate", checkpoint)
    optimizer = module._optimizer(module.parameters())
    assert isinstance(optimizer, torch.optim.AdamW)  # the config's
    assert type(module._lr_scheduler(optimizer)).__name__ == "LinearWarmup"
    assert not imported.exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("imported")
def test_a_fit_is_resumed_with_an_allowed_optimiser(run, tmp_path, built):
    rate = {"class_path": "their_code.Rate", "init_args": {"lr": 1}}
    module = built("fit", with_description(run, tmp_path, optimizer=rate), "--allow=their_code")
    optimizer = module._optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert (type(optimizer).__name__, optimizer.defaults["lr"]) == ("Rate", 1)


@pytest.mark.parametrize("place", ["encoder", "loss", "a list in the loss"])
def test_a_checkpoint_cannot_bring_its_code_in_anywhere(run, tmp_path, place):
    asking = {"model": "evil/model", "trust_remote_code": True}
    part = {"class_path": "fanoise_lightning.VisionLanguageEncoder", "init_args": asking}
    if place.startswith("a list"):
        part, place = {"class_path": "torch.nn.ModuleList", "init_args": {"modules": [part]}}, "loss"
    checkpoint = with_description(run, tmp_path, **{place: part})
    with pytest.raises(
        SystemExit, match="asks to run the Python code that comes with its model 'evil/model'"
    ):
        main(arguments(OFFLINE, "validate", tmp_path, checkpoint))


def test_trust_in_the_code_of_one_model_is_none_in_anothers(run, tmp_path):
    part = {"class_path": "fanoise_lightning.VisionLanguageEncoder"}
    part["init_args"] = {"model": "evil/model", "trust_remote_code": True}
    trusting = ["--model.encoder=fanoise_lightning.VisionLanguageEncoder", "--model.encoder.model=good/model"]
    trusting += ["--model.encoder.trust_remote_code=true", with_description(run, tmp_path, encoder=part)]
    with pytest.raises(SystemExit, match="code that comes with its model 'evil/model'"):
        main(arguments(OFFLINE, "validate", tmp_path, *trusting))


def test_pickled_code_does_not_run_from_a_url(monkeypatch):
    asked = []
    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io.get_filesystem", lambda path: Path())
    monkeypatch.setattr(Path, "exists", lambda self, *args: True)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **options: asked.append(options))
    AtomicCheckpointIO().load_checkpoint("https://example.org/last.ckpt")
    AtomicCheckpointIO().load_checkpoint("https://example.org/last.ckpt", weights_only=False)
    assert [options["weights_only"] for options in asked] == [True, False]


# The folder of a run


def fixed(folder: Path, *more: str) -> list[str]:
    """A run into one and the same folder: that of the fixture, where it is in `folder`."""
    place = ["--trainer.logger.init_args.version=0", "--trainer.max_steps=2", "--trainer.limit_val_batches=0"]
    return arguments(OFFLINE, "fit", folder, *place, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_used_folder_is_refused_and_left_as_it_is(run):
    before = contents(run)
    with pytest.raises(SystemExit, match=r"\.ckpt is another run's.*`ckpt_path`"):
        main(fixed(run.parents[1]))
    assert contents(run) == before


def test_a_used_folder_is_continued_in(run, tmp_path):
    shutil.copytree(run, tmp_path / "emoji" / "version_0")
    main(fixed(tmp_path, "--ckpt_path=last", "--trainer.max_steps=3"))
    checkpoints = (tmp_path / "emoji" / "version_0" / "checkpoints").glob("*.ckpt")
    assert 3 in {torch.load(path, weights_only=True)["global_step"] for path in checkpoints}


def test_a_folder_for_checkpoints_alone_is_refused_too(run, tmp_path):
    with pytest.raises(SystemExit, match=r"\.ckpt is another run's"):
        main(fixed(tmp_path, f"--trainer.callbacks.dirpath={run / 'checkpoints'}"))


def test_one_override_gives_the_baseline(tmp_path):
    _, *rest = arguments(OFFLINE, "fit", tmp_path, "--noise.alpha=0")
    cli = FANoiseCLI(rest, run=False)
    assert [c.alpha for c in cli.trainer.callbacks if type(c).__name__ == "FANoise"] == [0]
    assert isinstance(cli.trainer.strategy.checkpoint_io, AtomicCheckpointIO)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_yaml_that_says_what_it_is(config):
    assert config.read_text().startswith("#")
    assert {"model", "data", "trainer"} <= set(yaml.safe_load(config.read_text()))
