"""Every shipped recipe runs two steps, with a tiny model in the place of the published one."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_two_towers
import torch

from fanoise_lightning.cli import main

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
FAMILIES = {
    "phi35_vision": "phi3_v",
    "qwen2_vl_2b": "qwen2_vl",
    "qwen2_vl_7b": "qwen2_vl",
    "llava16_lr": "llava_next",
    "llava16_hr": "llava_next",
}


def run(config: str, folder: Path, *more: str) -> dict:
    on_a_laptop = {
        "accelerator": "cpu",
        "devices": 1,
        "strategy": "auto",
        "precision": "32-true",
        "max_steps": 2,
        "limit_val_batches": 0,
        "enable_progress_bar": "false",
        "enable_model_summary": "false",
        "logger.init_args.save_dir": folder,
    }
    data = {
        "root": "emoji",
        "batch_size": 2,
        "num_samples": 8,
        "num_workers": 0,
        "eval_subsets": "[renderer]",
    }
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


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr("sys.argv", ["fanoise"])  # Lightning warns of pytest's


@pytest.mark.parametrize("config", FAMILIES)
def test_a_recipe_of_the_paper_trains_its_adapter(config, tmp_path, tiny):
    options = {"dtype": "float32"}
    if config in ("qwen2_vl_2b", "qwen2_vl_7b", "llava16_hr"):
        options["image_size"] = 112  # 1344 is the recipe's: thousands of tokens
    overrides = [f"--model.encoder.init_args.{name}={value}" for name, value in options.items()]
    checkpoint = run(
        config, tmp_path, f"--model.encoder.init_args.model={tiny(FAMILIES[config])}", *overrides
    )
    assert checkpoint["global_step"] == 2
    lora = [value for name, value in checkpoint["state_dict"].items() if "lora_B" in name]
    assert lora
    assert all(value.shape[1] == 8 for value in lora)
    assert any(value.any() for value in lora)  # zero at the start


def test_the_siglip2_recipe_trains(tmp_path):
    model = tiny_two_towers.save_tiny(tmp_path / "model", "siglip2")
    assert run("siglip2_base", tmp_path, f"--model.encoder.init_args.model={model}")["global_step"] == 2


def test_the_clip_recipe_trains(tmp_path, tiny_clip):
    options = [f"--model.encoder.init_args.model={tiny_clip}", "--model.encoder.init_args.pretrained=null"]
    assert run("clip_vit_b16", tmp_path, *options)["global_step"] == 2


def test_every_recipe_is_tried_here_or_runs_as_it_is():
    tried = {*FAMILIES, "siglip2_base", "clip_vit_b16"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == tried | {"emoji"}
