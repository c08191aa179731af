"""A checkpoint of another encoder is refused by how the encoders differ, not by a list of all weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from training.frozen_weights import change_one_weight, save, trainer_of, with_frozen_towers

from fanoise_lightning import ContrastiveModule, OpenClipEncoder, TwoTowerEncoder


@pytest.fixture
def deeper(tiny_clip: str, tmp_path: Path) -> str:
    config = json.loads(Path(tiny_clip).read_text())
    config["vision_cfg"] |= {"layers": 3, "width": 48}
    path = tmp_path / "deeper-two-tower.json"
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture
def checkpoint(tiny_clip: str, tmp_path: Path) -> Path:
    save(ContrastiveModule(OpenClipEncoder(tiny_clip)), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


@pytest.mark.parametrize("run", ["fit", "validate"])
def test_a_trainer_says_first_how_the_encoder_of_the_checkpoint_differs(
    run: str, deeper: str, checkpoint: Path, tiny_clip: str
) -> None:
    module = ContrastiveModule(OpenClipEncoder(deeper))
    with pytest.raises(RuntimeError) as caught:
        getattr(trainer_of(), run)(module, DataLoader([0]), ckpt_path=checkpoint, weights_only=True)
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
        trainer_of().validate(module, DataLoader([0]), ckpt_path=checkpoint, weights_only=True)


def test_weights_alone_are_refused_without_a_list_of_all(deeper: str, checkpoint: Path) -> None:
    module = ContrastiveModule(OpenClipEncoder(deeper))
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    with pytest.raises(RuntimeError, match=r"^Error\(s\) in loading (.|\n)*\n  \.\.\. \d+ more$") as caught:
        module.load_state_dict(state)
    assert len(str(caught.value)) < 1100
    assert module.load_state_dict({}, strict=False).missing_keys == list(module.state_dict())


def test_other_frozen_weights_are_refused_by_the_model_that_they_are_from(
    clip: str, own_clip: str, tmp_path: Path
) -> None:
    save(ContrastiveModule(with_frozen_towers(clip)), tmp_path / "last.ckpt")
    change_one_weight(own_clip)
    module = ContrastiveModule(with_frozen_towers(own_clip))
    differs = rf"^the checkpoint is of another encoder: model='{clip}' in the checkpoint, '{own_clip}' here"
    with pytest.raises(ValueError, match=rf"{differs}.*not those it was trained with"):
        trainer_of().validate(module, DataLoader([0]), ckpt_path=tmp_path / "last.ckpt")
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
