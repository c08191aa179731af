"""A checkpoint is data: nothing that it names is imported, called or built unless it is allowed."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import nn

from fanoise_lightning import (
    ContrastiveModule,
    InfoNCE,
    LinearWarmup,
    MMEBDataModule,
    OpenClipEncoder,
    PairDataModule,
    VisionLanguageEncoder,
)
from fanoise_lightning.trust import check_arguments

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
PACKAGE = """
from pathlib import Path
from torch import nn
from torch.optim import SGD
from fanoise_lightning import InfoNCE

Path(__file__).with_name("imported").touch()

class Loss(InfoNCE):
    def __init__(self, temperature: float, sizes: tuple[int, int], part: nn.Module | None = None):
        super().__init__(temperature)
        self.sizes, self.part = sizes, part

class Rate(SGD):
    pass

class Runner:
    def __init__(self, command: str = ""):
        Path(__file__).with_name("ran").touch()
    def __call__(self, *args):
        return self

def run(*args, **kwargs):
    Path(__file__).with_name("ran").touch()
"""


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """The folder of ``their_code``, which can be imported, and says so if it is."""
    folder = tmp_path / "their_code"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    sys.modules.pop("their_code", None)


def nothing_happened(package: Path) -> bool:
    return "their_code" not in sys.modules and {file.name for file in package.iterdir()} == {"__init__.py"}


@pytest.fixture(scope="module")
def saved(tiny_clip) -> dict[str, Any]:
    """A checkpoint of a module that was built in Python."""
    module = ContrastiveModule(
        OpenClipEncoder(tiny_clip),
        InfoNCE(0.1),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        lr_scheduler=partial(LinearWarmup, warmup_steps=3),
    )
    return {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.6.6",
    }


@pytest.fixture
def write(saved, tmp_path):
    """Write that checkpoint with other hyperparameters, and return its path."""

    def changed(top: dict[str, Any] | None = None, **hyperparameters: Any) -> Path:
        checkpoint = copy.copy(saved) | (top or {})
        checkpoint["hyper_parameters"] = copy.deepcopy(saved["hyper_parameters"]) | hyperparameters
        torch.save(checkpoint, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return changed


def command(package: Path) -> dict[str, Any]:
    return {"command": f"touch {package / 'ran'}"}


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
    "fanoise_lightning.cli.main",
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
def test_a_class_that_is_not_allowed_is_neither_imported_nor_built(write, package, path, depth):
    description: Any = {"class_path": path, "init_args": command(package)}
    if depth:
        description = {
            "class_path": "torch.nn.TransformerEncoder",
            "init_args": {"encoder_layer": description},
        }
    with pytest.raises(ValueError, match="description of `loss"):
        ContrastiveModule.load_from_checkpoint(write(loss=description))
    assert nothing_happened(package)


LAYER = "torch.nn.TransformerEncoderLayer"
DISTANCE = "torch.nn.TripletMarginWithDistanceLoss"
RUNNER = {"class_path": "their_code.Runner"}
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
def test_nothing_is_hidden_in_arguments(write, package, loss):
    with pytest.raises(ValueError, match="description of `loss"):
        ContrastiveModule.load_from_checkpoint(write(loss=loss))
    assert nothing_happened(package)


def test_the_path_of_a_config_is_not_read(write, package, tmp_path):
    (tmp_path / "loss").write_text("class_path: their_code.Loss\n")
    inner = {
        "class_path": "torch.nn.TransformerEncoder",
        "init_args": {"encoder_layer": str(tmp_path / "loss")},
    }
    for loss in (str(tmp_path / "loss"), inner):
        with pytest.raises(ValueError, match="description of `loss"):
            ContrastiveModule.load_from_checkpoint(write(loss=loss))
    assert nothing_happened(package)


@pytest.mark.parametrize("key", ["encoder", "chunk_size"])
def test_every_key_is_checked(write, package, key):
    description = {"class_path": "their_code.Runner", "init_args": {}}
    with pytest.raises(ValueError, match=f"description of `{key}` is refused.*'their_code.Runner'"):
        ContrastiveModule.load_from_checkpoint(write(**{key: description}))
    assert nothing_happened(package)


@pytest.mark.parametrize("instantiator", ["os.system", "their_code.run", 1, ["os.system"]])
def test_another_instantiator_is_refused(write, package, instantiator):
    with pytest.raises(ValueError, match="_instantiator"):
        ContrastiveModule.load_from_checkpoint(write(_instantiator=instantiator))
    assert nothing_happened(package)


@pytest.mark.parametrize("key", ["hparams", "module_arguments"])
def test_hyperparameters_under_the_keys_of_old_are_refused(write, package, key):
    path = write({key: {"loss": {"class_path": "their_code.Loss"}}})
    with pytest.raises(ValueError, match=key):
        ContrastiveModule.load_from_checkpoint(path)
    assert nothing_happened(package)


def test_hyperparameters_cannot_be_made_one_argument(write, package, saved):
    """With ``hparams_name`` Lightning takes all of them for that argument."""
    whole = {"class_path": "their_code.Loss", "init_args": {}}
    path = write({"hparams_name": "loss"}, **whole)
    module = ContrastiveModule.load_from_checkpoint(path)
    assert isinstance(module.loss, InfoNCE)
    assert nothing_happened(package)


def test_the_file_beside_a_checkpoint_is_data_too(write, package, tmp_path, saved):
    hparams = saved["hyper_parameters"] | {"loss": {"class_path": "their_code.Loss"}}
    (tmp_path / "hparams.yaml").write_text(yaml.safe_dump(hparams))
    with pytest.raises(ValueError, match=r"'their_code\.Loss'"):
        ContrastiveModule.load_from_checkpoint(write(), hparams_file=tmp_path / "hparams.yaml")
    hparams["loss"] = {"class_path": "fanoise_lightning.InfoNCE", "init_args": {"temperature": 0.3}}
    (tmp_path / "hparams.yaml").write_text(yaml.safe_dump(hparams))
    module = ContrastiveModule.load_from_checkpoint(write(), hparams_file=tmp_path / "hparams.yaml")
    assert module.loss.temperature == 0.3
    assert nothing_happened(package)


@pytest.mark.parametrize("tag", ["!!python/name:os.system", "!!python/object/apply:their_code.run []"])
def test_yaml_makes_no_objects_of_it(write, package, tmp_path, tag):
    (tmp_path / "hparams.yaml").write_text(f"loss: {tag}\n_instantiator: {INSTANTIATOR}\n")
    with pytest.raises((ValueError, yaml.YAMLError)):
        ContrastiveModule.load_from_checkpoint(write(), hparams_file=tmp_path / "hparams.yaml")
    assert nothing_happened(package)


class Touch:
    """Unpickled, it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_code_does_not_run(write, package):
    path = write({"extra": Touch(package / "ran")})
    with pytest.raises(ValueError, match="cannot be read"):
        ContrastiveModule.load_from_checkpoint(path)
    assert nothing_happened(package)
    ContrastiveModule.load_from_checkpoint(path, weights_only=False)  # his word
    assert (package / "ran").exists()


def test_pickled_code_does_not_run_from_a_url(write, package, monkeypatch):
    path = write({"extra": Touch(package / "ran")})

    def download(url: str, map_location: Any, weights_only: bool) -> Any:
        return torch.load(path, map_location, weights_only=weights_only)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    with pytest.raises(ValueError, match=r"https://example\.org/last\.ckpt cannot be read"):
        ContrastiveModule.load_from_checkpoint("https://example.org/last.ckpt")
    assert nothing_happened(package)


# Optimiser and schedule

FACTORIES = [
    ("os.system", False),
    ("os.system", True),
    ("subprocess.Popen", False),
    ("their_code.run", True),
    ("their_code.Rate", False),
    ("torch.nn.ReLU", False),
]


@pytest.mark.parametrize("key", ["optimizer", "lr_scheduler"])
@pytest.mark.parametrize(("path", "as_string"), FACTORIES)
def test_a_factory_is_not_built_for_weights_and_checked_for_training(write, package, key, path, as_string):
    description: Any = path if as_string else {"class_path": path, "init_args": command(package)}
    module = ContrastiveModule.load_from_checkpoint(write(**{key: description}))
    assert nothing_happened(package)
    with pytest.raises(ValueError, match=f"`{key}` is refused"):
        module.configure_optimizers()
    assert nothing_happened(package)


def test_an_optimiser_that_is_not_built_is_named(write, package):
    with pytest.warns(UserWarning, match=r"`optimizer` is 'their_code\.Rate', .* to be trained again"):
        module = ContrastiveModule.load_from_checkpoint(write(optimizer={"class_path": "their_code.Rate"}))
    with pytest.raises(
        ValueError, match=r"`optimizer` is refused.*'their_code\.Rate'.*allow=\['their_code'\]"
    ):
        module.configure_optimizers()


def test_a_module_that_is_trained_again_has_the_optimiser_and_the_schedule_that_it_had(write):
    module = ContrastiveModule.load_from_checkpoint(write())
    for again in (module, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        optimizer = again._optimizer([nn.Parameter(torch.zeros(1))])
        assert type(optimizer) is torch.optim.SGD
        assert optimizer.defaults["lr"] == 0.5
        schedule = again._lr_scheduler(optimizer)
        assert isinstance(schedule, LinearWarmup)
        assert schedule.warmup_steps == 3


def test_a_loaded_module_is_described_as_before(write, saved):
    module = ContrastiveModule.load_from_checkpoint(write())
    assert dict(module.hparams) == saved["hyper_parameters"]


def test_an_own_optimiser_is_built_where_it_is_allowed(write, package):
    path = write(optimizer={"class_path": "their_code.Rate", "init_args": {"lr": 0.25}})
    module = ContrastiveModule.load_from_checkpoint(path, allow=["their_code"])
    assert "their_code" not in sys.modules  # not even then, for the weights alone
    optimizer = module._optimizer([nn.Parameter(torch.zeros(1))])
    assert (type(optimizer).__name__, optimizer.defaults["lr"]) == ("Rate", 0.25)


def test_lightnings_plateau_is_built(write):
    plateau = {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}}
    module = ContrastiveModule.load_from_checkpoint(write(lr_scheduler=plateau))
    schedule = module._lr_scheduler(module._optimizer(module.parameters()))
    assert schedule.monitor == "val/loss"


# The user's word

OWN = {"class_path": "their_code.Loss", "init_args": {"temperature": 0.2, "sizes": [3, 4]}}


@pytest.mark.parametrize("allow", [["their_code"], ["their_code.Loss"], "their_code", ("os", "their_code")])
def test_an_own_class_is_built_where_it_is_allowed(write, package, allow):
    part = {
        "class_path": "torch.nn.Linear",
        "init_args": {"in_features": 2, "out_features": 1, "bias": False},
    }
    own = {**OWN, "init_args": {**OWN["init_args"], "part": part}}
    module = ContrastiveModule.load_from_checkpoint(write(loss=own), allow=allow, strict=False)
    assert (type(module.loss).__name__, module.loss.temperature) == ("Loss", 0.2)
    assert module.loss.sizes == (3, 4)  # as a config has it: of the type of the argument
    assert module.loss.part.weight.shape == (1, 2)


@pytest.mark.parametrize("allow", [[], ["their"], ["their_code.Los"], ["other"]])
def test_a_class_beside_what_is_allowed_is_refused(write, package, allow):
    message = (
        r"`loss` is refused: it names the class 'their_code\.Loss'; .*allow=\['their_code'\].*loss=\.\.\."
    )
    with pytest.raises(ValueError, match=message):
        ContrastiveModule.load_from_checkpoint(write(loss=OWN), allow=allow)
    assert nothing_happened(package)


def test_a_package_is_not_allowed_to_hand_on_anothers_classes(write, package):
    popen = {"class_path": "their_code.Popen", "init_args": {"args": ["touch", str(package / "ran")]}}
    (package / "__init__.py").write_text("from subprocess import Popen\n")
    with pytest.raises(ValueError, match=r"'their_code\.Popen', which is 'subprocess\.Popen'"):
        ContrastiveModule.load_from_checkpoint(write(loss=popen), allow=["their_code"])
    assert not (package / "ran").exists()


def test_what_is_allowed_must_be_of_the_kind_that_belongs_there(write, package):
    with pytest.raises(ValueError, match=r"`loss` is refused: 'their_code\.Runner' is no Module"):
        ContrastiveModule.load_from_checkpoint(write(loss=RUNNER), allow=["their_code"])
    assert not (package / "ran").exists()


@pytest.mark.parametrize("allow", [["*"], [""], ["a/b"], [1]])
def test_a_word_that_is_no_path_is_refused(write, allow):
    with pytest.raises(ValueError, match="`allow` takes dotted paths"):
        ContrastiveModule.load_from_checkpoint(write(), allow=allow)


def test_an_object_that_is_passed_needs_no_other_word(write, package):
    module = ContrastiveModule.load_from_checkpoint(write(loss=OWN), loss=InfoNCE(0.7))
    assert module.loss.temperature == 0.7
    assert nothing_happened(package)


def test_a_child_loads_its_own_arguments_under_the_same_rule(write, package):
    class Child(ContrastiveModule):
        def __init__(self, encoder: nn.Module, extra: nn.Module | None = None, **kwargs: Any) -> None:
            super().__init__(encoder, **kwargs)

    with pytest.raises(ValueError, match=r"`extra` is refused.*'their_code\.Runner'"):
        Child.load_from_checkpoint(write(extra=RUNNER))
    with pytest.raises(ValueError, match=r"`anything` is refused.*'their_code\.Runner'"):
        Child.load_from_checkpoint(write(anything=RUNNER))
    assert nothing_happened(package)


# What loaded before still does


def test_the_checkpoint_of_a_run_of_the_command_loads(write, tiny_clip, saved):
    """As the command of version 0.1 wrote it."""
    encoder = {"model": tiny_clip, "pretrained": None, "gradient_checkpointing": False, "lora": None}
    loss = {"temperature": 0.07, "symmetric": False, "learnable_temperature": False, "gather": True}
    adamw = {"lr": 0.002, "betas": [0.9, 0.99], "eps": 1e-08, "weight_decay": 0.05, "amsgrad": False}
    path = write(
        {"hparams_name": "kwargs"},
        chunk_size=[2, 4],
        encoder={"class_path": "fanoise_lightning.OpenClipEncoder", "init_args": encoder},
        loss={"class_path": "fanoise_lightning.InfoNCE", "init_args": loss},
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {**adamw, "foreach": None, "fused": True}},
        lr_scheduler={"class_path": "fanoise_lightning.LinearWarmup", "init_args": {"total_steps": None}},
    )
    module = ContrastiveModule.load_from_checkpoint(path)
    assert module.loss.temperature == 0.07
    assert module.chunk_size == (2, 4)
    assert module._optimizer(module.parameters()).defaults["betas"] == (0.9, 0.99)
    for name, value in module.state_dict().items():
        assert torch.equal(value, saved["state_dict"][name])


def test_an_open_file_is_read_from_where_it_is(write):
    file = io.BytesIO(b"head" + write().read_bytes())
    file.seek(4)
    assert ContrastiveModule.load_from_checkpoint(file).loss.temperature == 0.1


def test_strings_of_plain_arguments_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.json").write_text("class_path: os.system")
    check_arguments(OpenClipEncoder, {"model": "model.json", "pretrained": "weights.pt", "lora": None})
    lora = {"targets": ["layers.attn", "q_proj"], "r": 4}
    check_arguments(VisionLanguageEncoder, {"model": "Qwen/Qwen2-VL-2B", "adapter": "a.b", "lora": lora})


def test_the_check_refuses_whatever_jsonargparse_would_import(package, tmp_path):
    """Every argument of these, with every form in which a class could be named."""
    (tmp_path / "config").write_text("class_path: their_code.Runner")
    spec = {"class_path": "their_code.Runner"}
    forms = [
        "their_code.run",
        spec,
        str(spec),
        [spec],
        {"a": spec},
        ["their_code.run"],
        str(tmp_path / "config"),
    ]
    classes = [nn.TransformerEncoderLayer, nn.Transformer, nn.TripletMarginWithDistanceLoss, nn.LSTM]
    classes += [torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR, VisionLanguageEncoder, PairDataModule]
    reached = 0
    for cls in classes:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, "module", fail_untyped=False, sub_configs=True)
        for name in vars(parser.get_defaults().module):
            for form in forms:
                with contextlib.suppress(Exception):
                    parser.parse_object({"module": {name: copy.deepcopy(form)}})
                if sys.modules.pop("their_code", None):
                    reached += 1
                    with pytest.raises(ValueError, match="is refused"):
                        check_arguments(cls, {name: form})
    assert reached > 20


# What comes with a model


@pytest.mark.parametrize("form", ["a file", "a folder"])
def test_an_open_clip_config_cannot_ask_for_code(tiny_clip, package, tmp_path, form):
    config = json.loads(Path(tiny_clip).read_text())
    config["text_cfg"] |= {
        "hf_tokenizer_name": str(tmp_path),
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    (tmp_path / "evil.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    code = {"auto_map": {"AutoTokenizer": ["their_tokenizer.Tokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(code))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs", **code}))
    (tmp_path / "their_tokenizer.py").write_text("import their_code")
    with pytest.raises(ValueError, match="asks to run the Python code that comes with its tokenizer"):
        OpenClipEncoder(str(tmp_path / "evil.json") if form == "a file" else f"local-dir:{tmp_path}")
    assert nothing_happened(package)


# Data modules


@pytest.mark.parametrize("cls", [MMEBDataModule, PairDataModule])
@pytest.mark.parametrize("collate", ["their_code.run", RUNNER, "os.system"])
def test_a_data_module_builds_nothing_of_a_checkpoint(package, tmp_path, cls, collate):
    described = {"_instantiator": INSTANTIATOR, "collate": collate, "root": "emoji", "path": "x.jsonl"}
    torch.save(
        {"datamodule_hyper_parameters": described, "pytorch-lightning_version": "2.6.6"}, tmp_path / "d.ckpt"
    )
    with pytest.raises(ValueError, match="`collate` is refused"):
        cls.load_from_checkpoint(tmp_path / "d.ckpt")
    assert nothing_happened(package)


def test_a_data_module_still_loads(tmp_path):
    described = {"_instantiator": INSTANTIATOR, "root": "emoji", "batch_size": 7}
    torch.save(
        {"datamodule_hyper_parameters": described, "pytorch-lightning_version": "2.6.6"}, tmp_path / "d.ckpt"
    )
    assert MMEBDataModule.load_from_checkpoint(tmp_path / "d.ckpt").batch_size == 7
