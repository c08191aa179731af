"""A checkpoint names classes by their public names, and is read by the names of earlier versions too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_two_towers
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

import fanoise_lightning
from fanoise_lightning import (
    ContrastiveModule,
    FeatureTap,
    InfoNCE,
    LinearWarmup,
    OpenClipEncoder,
    SigmoidLoss,
    TwoTowerEncoder,
    VisionLanguageEncoder,
)
from fanoise_lightning.__main__ import main
from fanoise_lightning.cli import FANoiseCLI
from fanoise_lightning.training.describe import describe, public_path, with_public_paths
from fanoise_lightning.training.trust import Described, check_arguments

# Where version 0.1 had its public classes, and where it exported them.
VERSION_0_1 = {
    "CachedFeatures": [],
    "ContrastiveModule": ["module"],
    "Encoder": ["encoders.base", "encoders"],
    "FeatureTap": ["losses"],
    "InfoNCE": ["losses"],
    "LinearWarmup": ["schedules"],
    "MatryoshkaLoss": [],
    "OnnxTowers": [],
    "PackagedTowers": [],
    "OpenClipEncoder": ["encoders.open_clip", "encoders"],
    "PrecisionAtOne": ["metrics"],
    "SigmoidLoss": ["losses"],
    "TwoTowerEncoder": ["encoders.two_tower", "encoders"],
    "VisionLanguageEncoder": ["encoders.vision_language", "encoders"],
}
PATHS = [(name, f"fanoise_lightning.{home}.{name}") for name, homes in VERSION_0_1.items() for home in homes]
RECIPE = Path(__file__).parents[2] / "examples" / "configs" / "emoji.yaml"


def test_the_list_has_every_public_module_and_schedule():
    public = [getattr(fanoise_lightning, name) for name in fanoise_lightning.__all__]
    kinds = (nn.Module, LRScheduler)
    assert {c.__name__ for c in public if isinstance(c, type) and issubclass(c, kinds)} == set(VERSION_0_1)


@pytest.mark.parametrize("name", VERSION_0_1)
def test_a_class_is_described_by_its_public_name(name):
    cls = getattr(fanoise_lightning, name)
    assert describe(partial(cls)) == {"class_path": f"fanoise_lightning.{name}", "init_args": {}}


@pytest.mark.parametrize(("name", "path"), PATHS, ids=lambda x: x.removeprefix("fanoise_lightning."))
def test_a_path_of_version_0_1_is_allowed_and_is_the_public_class(name, path):
    described = with_public_paths({"loss": {"class_path": path}})
    assert described == {"loss": {"class_path": f"fanoise_lightning.{name}"}}
    if name == "LinearWarmup":
        check_arguments(nn.ModuleDict, {"modules": described["loss"]})
    else:
        check_arguments(ContrastiveModule, described)


@pytest.fixture(scope="module")
def encoders(tiny_clip, tmp_path_factory) -> dict[str, nn.Module]:
    two_tower = tiny_two_towers.save_tiny(tmp_path_factory.mktemp("clip"), "clip")
    vision_language = tiny_models.save_tiny(tmp_path_factory.mktemp("qwen2_vl"), "qwen2_vl")
    return {
        "OpenClipEncoder": OpenClipEncoder(tiny_clip),
        "TwoTowerEncoder": TwoTowerEncoder(two_tower),
        "VisionLanguageEncoder": VisionLanguageEncoder(vision_language),
    }


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (name, path)
        for name, path in PATHS
        if name in ("OpenClipEncoder", "TwoTowerEncoder", "VisionLanguageEncoder")
    ],
)
def test_an_encoder_is_built_from_its_description(encoders, tmp_path, name, path):
    module = ContrastiveModule(encoders[name])
    hyperparameters = copy.deepcopy(dict(module.hparams))
    assert hyperparameters["encoder"]["class_path"] == f"fanoise_lightning.{name}"
    for class_path in (f"fanoise_lightning.{name}", path):
        hyperparameters["encoder"]["class_path"] = class_path
        saved = {"state_dict": module.state_dict(), "hyper_parameters": hyperparameters}
        torch.save(saved | {"pytorch-lightning_version": "2.6.6"}, tmp_path / "saved.ckpt")
        again = ContrastiveModule.load_from_checkpoint(tmp_path / "saved.ckpt")
        assert type(again.encoder) is type(encoders[name])
        assert describe(again.encoder) == describe(encoders[name])


LOSSES = [InfoNCE(0.3), SigmoidLoss(), FeatureTap()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_loss_is_built_from_its_description(write_checkpoint, loss):
    described = describe(loss)
    for path in (described["class_path"], f"fanoise_lightning.losses.{type(loss).__name__}"):
        part = {**described, "class_path": path}
        module = ContrastiveModule.load_from_checkpoint(write_checkpoint(loss=part), strict=False)
        assert type(module.loss) is type(loss)
        assert describe(module.loss) == described


@pytest.mark.parametrize(
    "path", ["fanoise_lightning.LinearWarmup", "fanoise_lightning.schedules.LinearWarmup"]
)
def test_a_schedule_is_built_from_its_description(path):
    assert describe(partial(LinearWarmup, warmup_steps=3))["class_path"] == "fanoise_lightning.LinearWarmup"
    described = with_public_paths({"class_path": path, "init_args": {"warmup_steps": 3}})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = Described("lr_scheduler", described, ())(optimizer)
    assert (type(schedule), schedule.warmup_steps) == (LinearWarmup, 3)


# A whole checkpoint of version 0.1


@pytest.fixture
def of_version_0_1(tiny_clip, tmp_path) -> Path:
    module = ContrastiveModule(OpenClipEncoder(tiny_clip), InfoNCE(0.3))
    hyperparameters = {
        "chunk_size": None,
        "encoder": {
            "class_path": "fanoise_lightning.encoders.open_clip.OpenClipEncoder",
            "init_args": describe(module.encoder)["init_args"],
        },
        "loss": {
            "class_path": "fanoise_lightning.losses.InfoNCE",
            "init_args": {"temperature": 0.3, "learnable_temperature": False, "symmetric": False},
        },
        "optimizer": {"class_path": "torch.optim.sgd.SGD", "init_args": {"lr": 0.5}},
        "lr_scheduler": {
            "class_path": "fanoise_lightning.schedules.LinearWarmup",
            "init_args": {"warmup_steps": 3},
        },
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    checkpoint = {
        "state_dict": module.state_dict(),
        "hyper_parameters": hyperparameters,
        "pytorch-lightning_version": "2.6.6",
        "resume": {"run_seed": 42, "gradients": None},
    }
    torch.save(checkpoint, tmp_path / "old.ckpt")
    return tmp_path / "old.ckpt"


def test_a_checkpoint_of_version_0_1_is_loaded(of_version_0_1):
    module = ContrastiveModule.load_from_checkpoint(of_version_0_1)
    assert (type(module.encoder), module.loss.temperature) == (OpenClipEncoder, 0.3)
    optimizer = module._optimizer(module.parameters())
    assert (type(optimizer), optimizer.defaults["lr"]) == (torch.optim.SGD, 0.5)
    assert module._lr_scheduler(optimizer).warmup_steps == 3


class Built(Exception):
    pass


@pytest.fixture
def built(monkeypatch) -> Callable[..., ContrastiveModule]:
    """The module that a command builds, which then stops."""

    def stop(cli: FANoiseCLI) -> None:
        raise Built(cli.model)

    def build(command: str, *more: str) -> ContrastiveModule:
        monkeypatch.setattr("sys.argv", ["fanoise"])  # Lightning warns of pytest's
        monkeypatch.setattr(FANoiseCLI, f"before_{command}", stop)
        with pytest.raises(Built) as stopped:
            main(
                [command, f"--config={RECIPE}", "--trainer.accelerator=cpu", "--trainer.logger=false", *more]
            )
        return stopped.value.args[0]

    return build


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_command_takes_a_checkpoint_of_version_0_1(of_version_0_1, built, tiny_clip, command):
    module = built(command, f"--ckpt_path={of_version_0_1}")
    assert (type(module.encoder), module.encoder.model) == (OpenClipEncoder, tiny_clip)
    assert (type(module.loss), module.loss.temperature) == (InfoNCE, 0.3)
    if command == "fit":
        assert module._optimizer(module.parameters()).defaults["lr"] == 0.5


# Names of others

FOREIGN = ["my_package.InfoNCE", "fanoise_lightning_evil.InfoNCE", "InfoNCE", "x.fanoise_lightning.InfoNCE"]


@pytest.mark.parametrize("path", FOREIGN)
def test_a_class_of_others_with_a_public_name_is_theirs(write_checkpoint, path):
    assert public_path(path) == path
    part: dict[str, Any] = {"class_path": path, "init_args": {}}
    with pytest.raises(ValueError, match="description of `loss` is refused"):
        ContrastiveModule.load_from_checkpoint(write_checkpoint(loss=part))


def test_what_cannot_be_kept_as_data_is_not_described():
    class Local(nn.Module):
        pass

    assert describe(Local()) is None
    assert describe(nn.Sequential(nn.ReLU())) is None  # its arguments are no attributes
    assert describe(partial(torch.optim.SGD, lr=torch.ones(1))) is None


def test_a_private_class_keeps_its_path():
    assert public_path("fanoise_lightning.losses.known_right.KnownRight").endswith("known_right.KnownRight")


def test_paths_are_read_at_any_depth_and_what_is_no_path_stays():
    old = {
        "class_path": "fanoise_lightning.losses.InfoNCE",
        "init_args": {"note": "fanoise_lightning.losses.InfoNCE"},
    }
    new = {
        "class_path": "fanoise_lightning.InfoNCE",
        "init_args": {"note": "fanoise_lightning.losses.InfoNCE"},
    }
    assert with_public_paths({"a": [old, (old, 1)], "class_path": 3}) == {
        "a": [new, (new, 1)],
        "class_path": 3,
    }
