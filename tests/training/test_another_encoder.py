"""A checkpoint of another encoder is refused by how the encoders differ, not by a list of all weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_two_towers
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from fanoise_lightning import ContrastiveModule, OpenClipEncoder, TwoTowerEncoder


@pytest.fixture
def deeper(tiny_clip: str, tmp_path: Path) -> str:
    config = json.loads(Path(tiny_clip).read_text())
    config["vision_cfg"] |= {"layers": 3, "width": 48}
    path = tmp_path / "deeper-two-tower.json"
    path.write_text(json.dumps(config))
    return str(path)


def quiet() -> Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(accelerator="cpu", **dict.fromkeys(off, False))


def save(module: ContrastiveModule, path: Path) -> Path:
    trainer = quiet()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def checkpoint(tiny_clip: str, tmp_path: Path) -> Path:
    return save(ContrastiveModule(OpenClipEncoder(tiny_clip)), tmp_path / "last.ckpt")


@pytest.mark.parametrize("run", ["fit", "validate"])
def test_a_trainer_says_first_how_the_encoder_of_the_checkpoint_differs(
    run: str, deeper: str, checkpoint: Path, tiny_clip: str
) -> None:
    module = ContrastiveModule(OpenClipEncoder(deeper))
    with pytest.raises(RuntimeError) as caught:
        getattr(quiet(), run)(module, DataLoader([0]), ckpt_path=checkpoint, weights_only=True)
    message = str(caught.value)
    assert message.startswith(
        f"the checkpoint is of another encoder: model='{tiny_clip}' in the checkpoint, '{deeper}' here. Build"
    )
    assert "Missing key(s)" in message
    assert "size mismatch" in message
    assert len(message) < 1500
    assert caught.value.__suppress_context__  # the traceback does not list them all, either


def test_another_class_is_named(clip: str, checkpoint: Path) -> None:
    module = ContrastiveModule(TwoTowerEncoder(clip))
    named = r"encoder: fanoise_lightning\.OpenClipEncoder in the checkpoint, .*\.TwoTowerEncoder here"
    with pytest.raises(RuntimeError, match=named):
        quiet().validate(module, DataLoader([0]), ckpt_path=checkpoint, weights_only=True)


def test_weights_alone_are_refused_without_a_list_of_all(deeper: str, checkpoint: Path) -> None:
    module = ContrastiveModule(OpenClipEncoder(deeper))
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    with pytest.raises(RuntimeError, match=r"^Error\(s\) in loading (.|\n)*\n  \.\.\. \d+ more$") as caught:
        module.load_state_dict(state)
    assert len(str(caught.value)) < 1100
    assert module.load_state_dict({}, strict=False).missing_keys == list(module.state_dict())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: Any) -> str:
    return tiny_two_towers.save_tiny(tmp_path_factory.mktemp("clip"), "clip")


def frozen(folder: str) -> ContrastiveModule:
    encoder = TwoTowerEncoder(folder)
    encoder.network.text_model.requires_grad_(False)
    return ContrastiveModule(encoder)


def test_other_frozen_weights_are_refused_by_the_model_that_they_are_from(clip: str, tmp_path: Path) -> None:
    path = save(frozen(clip), tmp_path / "last.ckpt")
    other = str(shutil.copytree(clip, tmp_path / "other"))
    weights = load_file(f"{other}/model.safetensors")
    weights["text_model.encoder.layers.0.mlp.fc1.weight"] += 1
    save_file(weights, f"{other}/model.safetensors", {"format": "pt"})
    expected = (
        rf"^the checkpoint is of another encoder: model='{clip}' in the checkpoint, '{other}' here..not those"
    )
    module = frozen(other)
    with pytest.raises(ValueError, match=expected):
        quiet().validate(module, DataLoader([0]), ckpt_path=path)
    with pytest.raises(RuntimeError, match=r"^Error"):  # what differed then is forgotten
        module.load_state_dict({})


def test_what_differs_in_nothing_that_weights_hold_is_loaded(tiny_clip: str, checkpoint: Path) -> None:
    module = ContrastiveModule(OpenClipEncoder(tiny_clip, gradient_checkpointing=True))
    found = torch.load(checkpoint, weights_only=True)
    module.on_load_checkpoint(found)
    module.load_state_dict(found["state_dict"])
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, found["state_dict"][name])
    with pytest.raises(RuntimeError, match=r"^Error"):  # what differed then is forgotten
        module.load_state_dict({})
