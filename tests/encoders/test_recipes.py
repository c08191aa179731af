"""Every shipped recipe trains and evaluates, with a tiny model in the place of the published one, and a small
snapshot of MMEB in the place of the hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fanoise_lightning.__main__ import main
from fanoise_lightning.evaluation.mmeb import CATALOG

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
FAMILIES = {
    "phi35_vision": "phi3_v",
    "qwen2_vl_2b": "qwen2_vl",
    "qwen2_vl_7b": "qwen2_vl",
    "llava16_lr": "llava_next",
    "llava16_hr": "llava_next",
}


def run(config: str, folder: Path, snapshot: Path, *more: str, **data: Any) -> dict:
    on_a_laptop = {
        "accelerator": "cpu",
        "devices": 1,
        "strategy": "auto",
        "precision": "32-true",
        "max_steps": 2,
        "val_check_interval": 2,
        "enable_progress_bar": "false",
        "enable_model_summary": "false",
        "logger.init_args.save_dir": folder,
    }
    data = {"root": snapshot, "batch_size": 4, "num_workers": 0, **data}
    main(
        [
            "fit",
            f"--config={CONFIGS / config}.yaml",
            *(f"--trainer.{name}={value}" for name, value in on_a_laptop.items()),
            *(f"--data.init_args.{name}={value}" for name, value in data.items()),
            *more,
        ]
    )
    (checkpoint,) = folder.rglob("last.ckpt")
    return torch.load(checkpoint, weights_only=True)


def scores(folder: Path) -> dict:
    (written,) = folder.rglob("scores.json")
    return json.loads(written.read_text())["scoreboard"]["subsets"]


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr("sys.argv", ["fanoise"])  # Lightning warns of pytest's


@pytest.mark.parametrize("config", FAMILIES)
def test_a_recipe_of_the_paper_trains_its_adapter(config, tmp_path, tiny, snapshot):
    options = {"dtype": "float32"}
    if config in ("qwen2_vl_2b", "qwen2_vl_7b", "llava16_hr"):
        options["image_size"] = 112  # 1344 is the recipe's: thousands of tokens
    overrides = [f"--model.encoder.init_args.{name}={value}" for name, value in options.items()]
    model = f"--model.encoder.init_args.model={tiny(FAMILIES[config])}"
    checkpoint = run(config, tmp_path, snapshot, model, *overrides, eval_subsets="[GQA,MSCOCO_t2i]")
    assert set(scores(tmp_path)) == {"GQA", "MSCOCO_t2i"}
    assert checkpoint["global_step"] == 2
    lora = [value for name, value in checkpoint["state_dict"].items() if "lora_B" in name]
    assert lora
    assert all(value.shape[1] == 8 for value in lora)
    assert any(value.any() for value in lora)  # zero at the start


def test_the_siglip2_recipe_trains(tmp_path, tiny, snapshot):
    model = f"--model.encoder.init_args.model={tiny('siglip2')}"
    assert run("siglip2_base", tmp_path, snapshot, model)["global_step"] == 2
    assert set(scores(tmp_path)) == set(CATALOG)


def test_the_clip_recipe_trains(tmp_path, tiny_clip, snapshot):
    options = [f"--model.encoder.init_args.model={tiny_clip}", "--model.encoder.init_args.pretrained=null"]
    assert run("clip_vit_b16", tmp_path, snapshot, *options)["global_step"] == 2
    assert set(scores(tmp_path)) == set(CATALOG)


@pytest.mark.parametrize("config", [*FAMILIES, "siglip2_base", "clip_vit_b16"])
def test_a_recipe_is_for_mmeb_on_the_hub(config):
    data = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["data"]["init_args"]
    assert data["root"] == "hf://datasets/TIGER-Lab"
    assert not {"train_subsets", "eval_subsets"} & set(data)  # all of it


def test_every_recipe_is_tried_here_or_runs_as_it_is():
    tried = {*FAMILIES, "siglip2_base", "clip_vit_b16"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == tried | {"emoji", "emoji_head"}
