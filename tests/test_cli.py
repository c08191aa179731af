from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fanoise_lightning import ContrastiveModule
from fanoise_lightning.cli import FANoiseCLI, main

CONFIGS = sorted((Path(__file__).parents[1] / "examples" / "configs").glob("*.yaml"))
OFFLINE = [path for path in CONFIGS if path.stem == "emoji"]


def arguments(config: Path, command: str, folder: Path, *more: str) -> list[str]:
    return [
        command,
        f"--config={config}",
        "--trainer.accelerator=cpu",
        f"--trainer.logger.init_args.save_dir={folder}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--data.init_args.num_workers=0",
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
    main(arguments(OFFLINE[0], "fit", folder, *short))
    return folder / "emoji" / "version_0"


@pytest.mark.parametrize("config", OFFLINE, ids=lambda path: path.stem)
def test_two_steps_run_from_each_config_that_can_run_offline(config, tmp_path):
    short = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0"]
    main(arguments(config, "fit", tmp_path, *short))
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2


def test_a_fit_writes_scores_spectra_figure_and_checkpoint(run):
    scores = json.loads((run / "scores.json").read_text())
    assert scores["step"] == 2
    assert set(scores["scoreboard"]["subsets"]) == {"renderer"}
    assert (run / "spectrum.png").stat().st_size > 10_000
    assert json.loads((run / "spectrum.json").read_text())["spectra"][0]["sides"]["query"]["noise"]
    assert (run / "checkpoints" / "last.ckpt").is_file()
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
    main(arguments(OFFLINE[0], command, tmp_path, checkpoint))
    name = "scores.json" if command == "validate" else "test_scores.json"
    (written,) = tmp_path.rglob(name)
    expected = json.loads((run / "scores.json").read_text())["scoreboard"]
    assert json.loads(written.read_text())["scoreboard"] == expected


def test_predict_writes_embeddings_with_the_embedding_writer(run, tmp_path):
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    writer = "--trainer.callbacks=fanoise_lightning.callbacks.EmbeddingWriter"
    main(arguments(OFFLINE[0], "predict", tmp_path, checkpoint, writer))
    (written,) = tmp_path.rglob("renderer.safetensors")
    embeddings = load_file(written)["embeddings"]
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(len(embeddings)), atol=1e-4)


def test_one_override_gives_the_baseline(tmp_path):
    _, *rest = arguments(OFFLINE[0], "fit", tmp_path, "--noise.alpha=0")
    cli = FANoiseCLI(rest, run=False)
    assert [c.alpha for c in cli.trainer.callbacks if type(c).__name__ == "FANoise"] == [0]


def test_a_bad_scaling_is_refused_by_the_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(arguments(OFFLINE[0], "fit", tmp_path, "--noise.scaling=cubic"))
    message = capsys.readouterr().err
    assert "cubic" in message
    assert "sublinear" in message


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_yaml_that_says_what_it_is(config):
    assert config.read_text().startswith("#")
    assert {"model", "data", "trainer"} <= set(yaml.safe_load(config.read_text()))
