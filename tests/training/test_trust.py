"""A checkpoint is data: nothing that it names is imported, called or built unless it is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from foreign_code import INSTANTIATOR, RUNNER, nothing_happened

from fanoise_lightning import ContrastiveModule, InfoNCE, MMEBDataModule, PairDataModule

CLASSES = [
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "torch.load",
    "torch.hub.load",
    "torch.fx.GraphModule",
    "runpy.run_path",
    "their_code.Loss",
    "their_code.run",
    "their_code",
    "Loss",
    "torch.nn.modules.module.os.system",  # re-exported: the modules that a module imports
    "torch.nn.modules.module.warnings.catch_warnings",
    "fanoise_lightning.module.inspect.Signature",
    "fanoise_lightning.__main__.main",
    "fanoise_lightning.cli.FANoiseCLI",
    "fanoise_lightning.cli.Trainer",
    "fanoise_lightning.nowhere.Loss",
    "fanoise_lightning.InfoNCE.__init__",
    "torch.nn.functional.relu",
    "../their_code.Loss",
    "",
    None,
    ["their_code.Loss"],
]


@pytest.mark.parametrize("path", CLASSES, ids=str)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_class_that_is_not_allowed_is_neither_imported_nor_built(write_checkpoint, their_code, path, depth):
    description: Any = {"class_path": path, "init_args": {"command": f"touch {their_code / 'ran'}"}}
    if depth:
        description = {
            "class_path": "torch.nn.TransformerEncoder",
            "init_args": {"encoder_layer": description},
        }
    with pytest.raises(ValueError, match="description of `loss"):
        ContrastiveModule.load_from_checkpoint(write_checkpoint(loss=description))
    assert nothing_happened(their_code)


LAYER = "torch.nn.TransformerEncoderLayer"
DISTANCE = "torch.nn.TripletMarginWithDistanceLoss"
HIDDEN = {
    "a string": "their_code.Loss",
    "a string of JSON": '{"class_path": "their_code.Loss"}',
    "no class path": {"init_args": {"temperature": 0.1}},
    "another key": {"class_path": "torch.nn.ReLU", "__path__": "x"},
    "arguments that are none": {"class_path": "torch.nn.ReLU", "init_args": "their_code.Loss"},
    "a function": {"class_path": DISTANCE, "init_args": {"distance_function": "their_code.run"}},
    "a function or a string": {"class_path": LAYER, "init_args": {"activation": "their_code.run"}},
    "a callable object": {"class_path": DISTANCE, "init_args": {"distance_function": RUNNER}},
    "in other arguments": {"class_path": "torch.nn.ReLU", "dict_kwargs": {"x": RUNNER}},
    "a list": {"class_path": "torch.nn.Sequential", "init_args": {"args": [1, [RUNNER]]}},
    "a dict": {"class_path": "torch.nn.ModuleDict", "init_args": {"modules": {"a": {"b": RUNNER}}}},
    "a key in dots": {"class_path": LAYER, "init_args": {"activation.class_path": "their_code.Runner"}},
    "a key in dots below": {
        "class_path": "torch.nn.ModuleDict",
        "init_args": {"modules": {"a.class_path": "x"}},
    },
    "JSON below": {"class_path": "torch.nn.ModuleDict", "init_args": {"modules": '{"a": 1}'}},
    "an unknown argument": {"class_path": "torch.nn.ReLU", "init_args": {"what": "their_code.run"}},
}


@pytest.mark.parametrize("loss", HIDDEN.values(), ids=HIDDEN)
def test_nothing_is_hidden_in_arguments(write_checkpoint, their_code, loss):
    with pytest.raises(ValueError, match="description of `loss"):
        ContrastiveModule.load_from_checkpoint(write_checkpoint(loss=loss))
    assert nothing_happened(their_code)


def test_the_path_of_a_config_is_not_read(write_checkpoint, their_code, tmp_path):
    (tmp_path / "loss").write_text("class_path: their_code.Loss\n")
    inner = {
        "class_path": "torch.nn.TransformerEncoder",
        "init_args": {"encoder_layer": str(tmp_path / "loss")},
    }
    for loss in (str(tmp_path / "loss"), inner):
        with pytest.raises(ValueError, match="description of `loss"):
            ContrastiveModule.load_from_checkpoint(write_checkpoint(loss=loss))
    assert nothing_happened(their_code)


@pytest.mark.parametrize("key", ["encoder", "chunk_size"])
def test_every_key_is_checked(write_checkpoint, their_code, key):
    description = {"class_path": "their_code.Runner", "init_args": {}}
    with pytest.raises(ValueError, match=f"description of `{key}` is refused.*'their_code.Runner'"):
        ContrastiveModule.load_from_checkpoint(write_checkpoint(**{key: description}))
    assert nothing_happened(their_code)


@pytest.mark.parametrize("instantiator", ["os.system", "their_code.run", 1, ["os.system"]])
def test_another_instantiator_is_refused(write_checkpoint, their_code, instantiator):
    with pytest.raises(ValueError, match="_instantiator"):
        ContrastiveModule.load_from_checkpoint(write_checkpoint(_instantiator=instantiator))
    assert nothing_happened(their_code)


@pytest.mark.parametrize("key", ["hparams", "module_arguments"])
def test_hyperparameters_under_the_keys_of_old_are_refused(write_checkpoint, their_code, key):
    path = write_checkpoint({key: {"loss": {"class_path": "their_code.Loss"}}})
    with pytest.raises(ValueError, match=key):
        ContrastiveModule.load_from_checkpoint(path)
    assert nothing_happened(their_code)


def test_hyperparameters_cannot_be_made_one_argument(write_checkpoint, their_code, saved_checkpoint):
    """With ``hparams_name`` Lightning takes all of them for that argument."""
    whole = {"class_path": "their_code.Loss", "init_args": {}}
    path = write_checkpoint({"hparams_name": "loss"}, **whole)
    module = ContrastiveModule.load_from_checkpoint(path)
    assert isinstance(module.loss, InfoNCE)
    assert nothing_happened(their_code)


def test_the_file_beside_a_checkpoint_is_data_too(write_checkpoint, their_code, tmp_path, saved_checkpoint):
    hparams = saved_checkpoint["hyper_parameters"] | {"loss": {"class_path": "their_code.Loss"}}
    (tmp_path / "hparams.yaml").write_text(yaml.safe_dump(hparams))
    with pytest.raises(ValueError, match=r"'their_code\.Loss'"):
        ContrastiveModule.load_from_checkpoint(write_checkpoint(), hparams_file=tmp_path / "hparams.yaml")
    hparams["loss"] = {"class_path": "fanoise_lightning.InfoNCE", "init_args": {"temperature": 0.3}}
    (tmp_path / "hparams.yaml").write_text(yaml.safe_dump(hparams))
    module = ContrastiveModule.load_from_checkpoint(
        write_checkpoint(), hparams_file=tmp_path / "hparams.yaml"
    )
    assert module.loss.temperature == 0.3
    assert nothing_happened(their_code)


@pytest.mark.parametrize("tag", ["!!python/name:os.system", "!!python/object/apply:their_code.run []"])
def test_yaml_makes_no_objects_of_it(write_checkpoint, their_code, tmp_path, tag):
    (tmp_path / "hparams.yaml").write_text(f"loss: {tag}\n_instantiator: {INSTANTIATOR}\n")
    with pytest.raises((ValueError, yaml.YAMLError)):
        ContrastiveModule.load_from_checkpoint(write_checkpoint(), hparams_file=tmp_path / "hparams.yaml")
    assert nothing_happened(their_code)


class Touch:
    """Unpickled, it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_code_does_not_run(write_checkpoint, their_code):
    path = write_checkpoint({"extra": Touch(their_code / "ran")})
    with pytest.raises(ValueError, match="cannot be read"):
        ContrastiveModule.load_from_checkpoint(path)
    assert nothing_happened(their_code)
    ContrastiveModule.load_from_checkpoint(path, weights_only=False)  # his word
    assert (their_code / "ran").exists()


def test_pickled_code_does_not_run_from_a_url(write_checkpoint, their_code, monkeypatch):
    path = write_checkpoint({"extra": Touch(their_code / "ran")})

    def download(url: str, map_location: Any, weights_only: bool) -> Any:
        return torch.load(path, map_location, weights_only=weights_only)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    with pytest.raises(ValueError, match=r"https://example\.org/last\.ckpt cannot be read"):
        ContrastiveModule.load_from_checkpoint("https://example.org/last.ckpt")
    assert nothing_happened(their_code)


# Data modules


@pytest.mark.parametrize("cls", [MMEBDataModule, PairDataModule])
@pytest.mark.parametrize("collate", ["their_code.run", RUNNER, "os.system"])
def test_a_data_module_builds_nothing_of_a_checkpoint(their_code, tmp_path, cls, collate):
    described = {"_instantiator": INSTANTIATOR, "collate": collate, "root": "emoji", "path": "x.jsonl"}
    torch.save(
        {"datamodule_hyper_parameters": described, "pytorch-lightning_version": "2.6.6"}, tmp_path / "d.ckpt"
    )
    with pytest.raises(ValueError, match="`collate` is refused"):
        cls.load_from_checkpoint(tmp_path / "d.ckpt")
    assert nothing_happened(their_code)


def test_a_data_module_still_loads(tmp_path):
    described = {"_instantiator": INSTANTIATOR, "root": "emoji", "batch_size": 7}
    torch.save(
        {"datamodule_hyper_parameters": described, "pytorch-lightning_version": "2.6.6"}, tmp_path / "d.ckpt"
    )
    assert MMEBDataModule.load_from_checkpoint(tmp_path / "d.ckpt").batch_size == 7
