"""What a checkpoint may build: the library's and torch's classes, and those that the user allows."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from typing import Any

import pytest
import torch
from foreign_code import RUNNER, nothing_happened
from torch import nn

from fanoise_lightning import ContrastiveModule, InfoNCE, LinearWarmup

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
def test_a_factory_is_not_built_for_weights_and_checked_for_training(
    write_checkpoint, their_code, key, path, as_string
):
    description: Any = (
        path if as_string else {"class_path": path, "init_args": {"command": f"touch {their_code / 'ran'}"}}
    )
    module = ContrastiveModule.load_from_checkpoint(write_checkpoint(**{key: description}))
    assert nothing_happened(their_code)
    with pytest.raises(ValueError, match=f"`{key}` is refused"):
        module.configure_optimizers()
    assert nothing_happened(their_code)


def test_an_optimiser_that_is_not_built_is_named(write_checkpoint, their_code):
    with pytest.warns(UserWarning, match=r"`optimizer` is 'their_code\.Rate', .* to train it again"):
        module = ContrastiveModule.load_from_checkpoint(
            write_checkpoint(optimizer={"class_path": "their_code.Rate"})
        )
    with pytest.raises(
        ValueError, match=r"`optimizer` is refused.*'their_code\.Rate'.*allow=\['their_code'\]"
    ):
        module.configure_optimizers()


def test_a_module_that_is_trained_again_has_the_optimiser_and_the_schedule_that_it_had(write_checkpoint):
    module = ContrastiveModule.load_from_checkpoint(write_checkpoint())
    for again in (module, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        optimizer = again._optimizer([nn.Parameter(torch.zeros(1))])
        assert type(optimizer) is torch.optim.SGD
        assert optimizer.defaults["lr"] == 0.5
        schedule = again._lr_scheduler(optimizer)
        assert isinstance(schedule, LinearWarmup)
        assert schedule.warmup_steps == 3


def test_a_loaded_module_is_described_as_before(write_checkpoint, saved_checkpoint):
    module = ContrastiveModule.load_from_checkpoint(write_checkpoint())
    assert dict(module.hparams) == saved_checkpoint["hyper_parameters"]


def test_an_own_optimiser_is_built_where_it_is_allowed(write_checkpoint, their_code):
    path = write_checkpoint(optimizer={"class_path": "their_code.Rate", "init_args": {"lr": 0.25}})
    module = ContrastiveModule.load_from_checkpoint(path, allow=["their_code"])
    assert "their_code" not in sys.modules  # not even then, for the weights alone
    optimizer = module._optimizer([nn.Parameter(torch.zeros(1))])
    assert (type(optimizer).__name__, optimizer.defaults["lr"]) == ("Rate", 0.25)


def test_lightnings_plateau_is_built(write_checkpoint):
    plateau = {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}}
    module = ContrastiveModule.load_from_checkpoint(write_checkpoint(lr_scheduler=plateau))
    schedule = module._lr_scheduler(module._optimizer(module.parameters()))
    assert schedule.monitor == "val/loss"


# The user's word

OWN = {"class_path": "their_code.Loss", "init_args": {"temperature": 0.2, "sizes": [3, 4]}}


@pytest.mark.parametrize("allow", [["their_code"], ["their_code.Loss"], "their_code", ("os", "their_code")])
def test_an_own_class_is_built_where_it_is_allowed(write_checkpoint, their_code, allow):
    part = {
        "class_path": "torch.nn.Linear",
        "init_args": {"in_features": 2, "out_features": 1, "bias": False},
    }
    own = {**OWN, "init_args": {**OWN["init_args"], "part": part}}
    module = ContrastiveModule.load_from_checkpoint(write_checkpoint(loss=own), allow=allow, strict=False)
    assert (type(module.loss).__name__, module.loss.temperature) == ("Loss", 0.2)
    assert module.loss.sizes == (3, 4)  # as a config has it: of the type of the argument
    assert module.loss.part.weight.shape == (1, 2)


@pytest.mark.parametrize("allow", [None, [], ["their"], ["their_code.Los"], ["other"]])
def test_a_class_beside_what_is_allowed_is_refused(write_checkpoint, their_code, allow):
    message = (
        r"`loss` is refused: it names the class 'their_code\.Loss'; .*allow=\['their_code'\].*loss=\.\.\."
    )
    with pytest.raises(ValueError, match=message):
        ContrastiveModule.load_from_checkpoint(write_checkpoint(loss=OWN), allow=allow)
    assert nothing_happened(their_code)


def test_a_package_is_not_allowed_to_hand_on_anothers_classes(write_checkpoint, their_code):
    popen = {"class_path": "their_code.Popen", "init_args": {"args": ["touch", str(their_code / "ran")]}}
    (their_code / "__init__.py").write_text("from subprocess import Popen\n")
    with pytest.raises(ValueError, match=r"'their_code\.Popen', which is 'subprocess\.Popen'"):
        ContrastiveModule.load_from_checkpoint(write_checkpoint(loss=popen), allow=["their_code"])
    assert not (their_code / "ran").exists()


def test_what_is_allowed_must_be_of_the_kind_that_belongs_there(write_checkpoint, their_code):
    with pytest.raises(ValueError, match=r"`loss` is refused: 'their_code\.Runner' is not a Module"):
        ContrastiveModule.load_from_checkpoint(write_checkpoint(loss=RUNNER), allow=["their_code"])
    assert not (their_code / "ran").exists()


@pytest.mark.parametrize("allow", [["*"], [""], "", ["a/b"], [1], [None], 5, True, False, b"os"])
def test_what_is_not_a_dotted_path_is_refused(write_checkpoint, allow):
    with pytest.raises(ValueError, match="`allow` takes dotted paths"):
        ContrastiveModule.load_from_checkpoint(write_checkpoint(), allow=allow)


@pytest.mark.parametrize("path", [None, ""])
def test_a_checkpoint_that_was_never_saved_is_an_error_that_says_so(path):
    with pytest.raises(
        ValueError, match=f"`checkpoint_path` must be .*got {path!r}; .*until a checkpoint is"
    ):
        ContrastiveModule.load_from_checkpoint(path)


def test_an_object_that_is_passed_needs_no_other_word(write_checkpoint, their_code):
    module = ContrastiveModule.load_from_checkpoint(write_checkpoint(loss=OWN), loss=InfoNCE(0.7))
    assert module.loss.temperature == 0.7
    assert nothing_happened(their_code)


def test_a_child_loads_its_own_arguments_under_the_same_rule(write_checkpoint, their_code):
    class Child(ContrastiveModule):
        def __init__(self, encoder: nn.Module, extra: nn.Module | None = None, **kwargs: Any) -> None:
            super().__init__(encoder, **kwargs)

    with pytest.raises(ValueError, match=r"`extra` is refused.*'their_code\.Runner'"):
        Child.load_from_checkpoint(write_checkpoint(extra=RUNNER))
    with pytest.raises(ValueError, match=r"`anything` is refused.*'their_code\.Runner'"):
        Child.load_from_checkpoint(write_checkpoint(anything=RUNNER))
    assert nothing_happened(their_code)


# What loaded before still does


def test_the_checkpoint_of_a_run_of_the_command_loads(write_checkpoint, tiny_clip, saved_checkpoint):
    """As the command of version 0.1 wrote it."""
    encoder = {"model": tiny_clip, "pretrained": None, "gradient_checkpointing": False, "lora": None}
    loss = {"temperature": 0.07, "symmetric": False, "learnable_temperature": False, "gather": True}
    adamw = {"lr": 0.002, "betas": [0.9, 0.99], "eps": 1e-08, "weight_decay": 0.05, "amsgrad": False}
    path = write_checkpoint(
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
        assert torch.equal(value, saved_checkpoint["state_dict"][name])


def test_an_open_file_is_read_from_where_it_is(write_checkpoint):
    file = io.BytesIO(b"head" + write_checkpoint().read_bytes())
    file.seek(4)
    assert ContrastiveModule.load_from_checkpoint(file).loss.temperature == 0.1
