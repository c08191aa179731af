"""What a card says of a training is read from its checkpoint, the files beside it, or the module."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch import nn

from fanoise_lightning import (
    ContrastiveModule,
    FANoise,
    InfoNCE,
    LinearAlpha,
    MMEBDataModule,
    OpenClipEncoder,
    PairDataModule,
    RepeatAlpha,
    ScoreboardWriter,
)
from fanoise_lightning.export.card_base import base_of, data_of
from fanoise_lightning.export.card_facts import Facts, checkpoint_facts, module_facts, with_scores

ROWS = [{"caption": f"picture {i}", "title": f"a title {i}"} for i in range(40)]


class Run:
    """A short training with FANoise, in the folders that the command makes."""

    def __init__(self, folder: Path, tiny_clip: str) -> None:
        self.folder, self.checkpoint = folder, folder / "checkpoints" / "last.ckpt"
        (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        torch.manual_seed(0)
        self.module = ContrastiveModule(
            OpenClipEncoder(tiny_clip), InfoNCE(0.1), partial(torch.optim.SGD, lr=0.5), chunk_size=4
        )
        data = PairDataModule(
            str(folder / "pairs.jsonl"), query="caption", target="title", batch_size=8, num_workers=0
        )
        noise = FANoise(alpha=RepeatAlpha(), scaling="linear", energy="constant", seed=1)
        self.trainer = Trainer(
            accelerator="cpu",
            max_epochs=2,
            callbacks=[noise, ScoreboardWriter(folder)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=2.0,
        )
        self.trainer.fit(self.module, data)
        self.trainer.save_checkpoint(self.checkpoint)
        self.live = module_facts(self.module)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_clip: str) -> Run:
    return Run(tmp_path_factory.mktemp("run"), tiny_clip)


def copy_of(run: Run, folder: Path, **changes: Any) -> Path:
    """The checkpoint alone in a folder, with some of its parts changed."""
    state = torch.load(run.checkpoint, weights_only=True) | changes
    torch.save(state, folder / "last.ckpt")
    return folder / "last.ckpt"


def config_of(run: Run) -> dict[str, Any]:
    """The configuration as the command line would write it."""
    encoder = json.loads(
        json.dumps(torch.load(run.checkpoint, weights_only=True)["hyper_parameters"]["encoder"])
    )
    trainer = {"precision": "bf16-mixed", "max_steps": 100}
    return {
        "seed_everything": 7,
        "model": {"encoder": encoder},
        "trainer": trainer,
        "noise": {"alpha": 0.3, "scaling": "uniform", "seed": 5},
    }


def test_a_checkpoint_tells_how_it_was_trained(run: Run) -> None:
    facts = checkpoint_facts(run.checkpoint)
    assert facts.model is not None
    assert facts.model["loss"]["init_args"]["temperature"] == 0.1
    assert facts.model["optimizer"] == {"class_path": "torch.optim.sgd.SGD", "init_args": {"lr": 0.5}}
    assert facts.model["chunk_size"] == 4
    assert (
        facts.steps == run.trainer.global_step == 8
    )  # 36 pairs in batches of 8, twice, without what is left
    assert facts.data is not None
    assert facts.data["subsets"] == {"pairs": 36}
    assert facts.data["batch_size"] == 8
    assert facts.data["overlap"] == {"queries": [0, 4], "targets": [0, 4], "images": [0, 0]}
    assert data_of(facts.data["source"]).name == "pairs.jsonl"
    assert facts.lightning


def test_a_checkpoint_tells_the_settings_of_its_noise(run: Run) -> None:
    (noise,) = checkpoint_facts(run.checkpoint).noise or []
    assert noise["alpha"] == "RepeatAlpha(rate=0.25, passes=2.0)"  # as it was in training
    assert noise["scaling"] == "linear"
    assert noise["energy"] == "constant"
    assert noise["scope"] == "local"
    assert noise["target"] == "loss"  # where it was found
    assert noise["sides"] == ["query", "target"]
    assert noise["skipped"] == 0


def test_the_settings_of_noise_are_plain_whatever_the_arguments(tmp_path: Path) -> None:
    callbacks = [FANoise(LinearAlpha(0, 1, 5)), FANoise(lambda step: 0.1), FANoise(scaling=torch.sqrt)]
    torch.save([callback.state_dict() for callback in callbacks], tmp_path / "states")
    states = torch.load(tmp_path / "states", weights_only=True)
    assert states[0]["settings"]["alpha"] == "LinearAlpha(start=0, end=1, steps=5)"
    assert states[1]["settings"]["alpha"].endswith("<lambda>")
    assert states[2]["settings"]["scaling"] == "torch.sqrt"


def test_the_module_knows_what_its_checkpoint_does(run: Run) -> None:
    found = checkpoint_facts(run.checkpoint)
    for name in ("model", "steps", "noise", "data", "lightning"):
        assert getattr(run.live, name) == getattr(found, name), name
    assert json.loads(json.dumps(run.live.scores)) == found.scores is not None
    assert run.live.trainer is not None
    assert run.live.trainer["gradient_clip_val"] == 2.0


def test_a_module_that_was_trained_since_has_no_scores(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.module, "pairs_seen", run.module.pairs_seen + 1)
    facts = module_facts(run.module)
    assert facts.scores is None
    assert facts.no_scores == "the model was trained further since it was last evaluated"


def test_a_module_without_a_trainer_tells_how_it_was_built(tiny_clip: str) -> None:
    facts = module_facts(ContrastiveModule(OpenClipEncoder(tiny_clip), InfoNCE(0.3)))
    assert facts.model is not None
    assert facts.model["loss"]["init_args"]["temperature"] == 0.3
    assert (facts.steps, facts.noise, facts.data, facts.scores) == (None,) * 4


def test_the_config_of_the_run_is_read_beside_the_checkpoint(run: Run, tmp_path: Path) -> None:
    path = copy_of(run, tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_of(run)))
    facts = checkpoint_facts(path)
    assert facts.trainer == {"precision": "bf16-mixed", "max_steps": 100}
    assert facts.seed == 7
    assert facts.noise is not None
    assert facts.noise[0]["scaling"] == "linear"  # the checkpoint's own


def test_the_config_tells_the_noise_that_a_checkpoint_of_weights_lacks(run: Run, tmp_path: Path) -> None:
    path = copy_of(run, tmp_path, callbacks=None)
    assert checkpoint_facts(path).noise is None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_of(run)))
    assert checkpoint_facts(path).noise == [{"alpha": 0.3, "scaling": "uniform"}]


def test_a_checkpoint_of_the_last_version_has_the_law_alone(run: Run, tmp_path: Path) -> None:
    state = {"seed": 1, "skipped": 0, "law": ("linear", "constant"), "shapes": {}, "moments": {}}
    path = copy_of(run, tmp_path, callbacks={"FANoise-0": state})
    assert checkpoint_facts(path).noise == [{"scaling": "linear", "energy": "constant", "skipped": 0}]


def test_the_config_of_another_run_is_not_taken(run: Run, tmp_path: Path) -> None:
    path, config = copy_of(run, tmp_path), config_of(run)
    config["model"]["encoder"]["init_args"]["model"] = "ViT-B-32"
    for text in (yaml.safe_dump(config), "a list of words", ""):
        (tmp_path / "config.yaml").write_text(text)
        assert checkpoint_facts(path).trainer is None


def test_scores_of_another_step_are_not_taken(run: Run, tmp_path: Path) -> None:
    facts = checkpoint_facts(copy_of(run, tmp_path, global_step=5))
    assert facts.scores is None
    (tmp_path / "scores.json").write_text((run.folder / "scores.json").read_text())
    facts = checkpoint_facts(tmp_path / "last.ckpt")
    assert facts.scores is None
    assert facts.no_scores == "this is step 5, and scores.json is of step 8"
    with pytest.raises(ValueError, match=r"scores after 8 steps, and the model was trained for 5: evaluate"):
        with_scores(facts, tmp_path / "scores.json")


def test_scores_that_are_named_may_come_from_a_test_that_knows_no_step(run: Run, tmp_path: Path) -> None:
    scores = json.loads((run.folder / "scores.json").read_text())
    (tmp_path / "test_scores.json").write_text(json.dumps({**scores, "step": 0}))
    facts = with_scores(checkpoint_facts(run.checkpoint), tmp_path / "test_scores.json")
    assert facts.scores == scores["scoreboard"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"step": 1}', '{"step": 1, "scoreboard": {}}'])
def test_a_file_that_is_no_scoreboard_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ValueError, match=r"scores\.json` is not a scoreboard: pass the scores\.json"):
        with_scores(Facts(), tmp_path / "scores.json")
    with pytest.raises(FileNotFoundError, match="there is no scoreboard"):
        with_scores(Facts(), tmp_path / "other.json")


def test_a_config_that_is_no_yaml_is_named(run: Run, tmp_path: Path) -> None:
    path = copy_of(run, tmp_path)
    (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(ValueError, match=r"config\.yaml` cannot be read as YAML"):
        checkpoint_facts(path)


def test_licences_are_those_of_the_cards_that_are_here(tmp_path: Path) -> None:
    class Encoder:
        model = str(tmp_path / "models--Qwen--Qwen2-VL" / "snapshots" / "abc")

    Path(Encoder.model).mkdir(parents=True)
    base = base_of(Encoder())
    assert base is not None
    assert (base.name, base.hub_id, base.licences) == ("Qwen/Qwen2-VL", "Qwen/Qwen2-VL", ())
    for text, licences in (
        ("---\nlicense: apache-2.0\n---\n", ("apache-2.0",)),
        ("---\nlicense: [mit, cc-by-4.0]\n---\n", ("mit", "cc-by-4.0")),
        ("---\nlicense: [\n---\n", ()),
        ("no header", ()),
    ):
        Path(Encoder.model, "README.md").write_text(text)
        base = base_of(Encoder())
        assert base is not None
        assert base.licences == licences


@pytest.mark.parametrize(
    ("name", "tag", "hub_id"),
    [
        ("ViT-B-32", "openai", "timm/vit_base_patch32_clip_224.openai"),
        ("ViTamin-S", "datacomp1b", "jienengchen/ViTamin-S"),  # open_clip names a file there
        ("ViT-B-32", "weights.pt", None),
    ],
)
def test_the_base_of_a_tag_is_its_repository(name: str, tag: str, hub_id: str | None) -> None:
    class Encoder(OpenClipEncoder):
        model, pretrained = name, tag

        def __init__(self) -> None:
            nn.Module.__init__(self)

    base = base_of(Encoder())
    assert base is not None
    assert base.hub_id == hub_id


def test_data_are_named_without_the_paths_of_this_machine() -> None:
    assert data_of("/home/me/secret/pairs.jsonl").name == "pairs.jsonl"
    assert data_of("hf://datasets/TIGER-Lab").hub_id == "TIGER-Lab/MMEB-train"
    assert data_of("hf://datasets/me/pairs").hub_id == "me/pairs"


def test_the_embedded_benchmark_has_its_licences() -> None:
    data = data_of(MMEBDataModule("emoji").source_name)
    assert (data.name, data.licences) == ("emoji", ("apache-2.0", "cc-by-4.0", "mit"))
