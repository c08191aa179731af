"""A fresh adapter: what it trains, and which parts of the model are in train mode."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from adapter_checks import SAMPLES, assert_close, embed, families, randomise, trained
from torch import nn

from fanoise_lightning.encoders.adapters import add_lora
from fanoise_lightning.encoders.families import FAMILIES
from fanoise_lightning.encoders.pretrained import PretrainedEncoder
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder


@families
def test_lora_trains_the_linear_layers_of_the_language_part_alone(tiny, family):
    encoder = VisionLanguageEncoder(tiny(family), lora={"r": 2})
    names = trained(encoder)
    linear = {
        name
        for name, module in encoder.network.named_modules()
        if ".layers." in name and ".lora_" not in name and isinstance(module, nn.Linear)
    }
    linear = {name.removesuffix(".base_layer") for name in linear}
    vision = tuple(f"model.{module}" for module in FAMILIES[family].vision)
    expected = {name for name in linear if not name.startswith(vision)}
    assert {name.split(".lora_")[0].removeprefix("network.") for name in names} == expected
    assert len(expected) == 2 * (4 if family == "phi3_v" else 7)
    assert len(names) == 2 * len(expected)


@families
def test_a_fresh_adapter_changes_nothing_and_gets_gradients(tiny, family):
    plain = VisionLanguageEncoder(tiny(family))
    encoder = VisionLanguageEncoder(tiny(family), lora={})
    assert_close(embed(encoder), embed(plain))
    randomise(encoder)
    encoder.train()(**encoder.collate(SAMPLES)).square().sum().backward()
    assert all((p.grad.abs().sum() > 0) for p in encoder.parameters() if p.requires_grad)
    assert all(p.grad is None for p in encoder.parameters() if not p.requires_grad)


def test_settings_reach_peft(tiny):
    settings = {"r": 3, "alpha": 12, "dropout": 0.25, "targets": ["q_proj"], "dora": True, "init": "gaussian"}
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), lora=settings)
    config = encoder.network.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 12, 0.25)
    assert config.init_lora_weights == "gaussian"
    layer = encoder.network.model.language_model.layers[0].self_attn.q_proj
    assert layer.use_dora["default"]
    assert layer.scaling["default"] == 4
    assert all(".q_proj." in name for name in trained(encoder))
    assert any("magnitude" in name for name in trained(encoder))


def test_the_defaults_are_those_of_the_paper(tiny):
    config = VisionLanguageEncoder(tiny("qwen2_vl"), lora={}).network.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_dora) == (8, 64, 0.1, False)


def test_adapters_of_bfloat16_weights_stay_in_float32(tiny):
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), lora={}, dtype="bfloat16")
    dtypes = {(p.requires_grad, p.dtype) for p in encoder.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert embed(encoder).isfinite().all()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 8}, "unknown `lora` setting `rank`; did you mean .* Known: r, alpha"),
        ({"targets": "nothing"}, "'nothing' names no module of Qwen2VL"),
        ({"targets": []}, r"`lora.targets` \[\] names no module"),
        ({"targets": ["q_proj", "nonsense", "k_prj"]}, "^'nonsense', 'k_prj' of .* the nearest: k_proj"),
        (
            {"targets": ["layers.0.self_attn.q_proj", "layers.9.self_attn.q_proj"]},
            r"^'layers\.9.* of `lora.t",
        ),
        ({"targets": "(q_proj"}, r"`lora.targets` '\(q_proj' is not a regular expression"),
        ({"init": "zero"}, "`lora.init` must be one of 'default', 'gaussian', got 'zero'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tiny, lora, message):
    with pytest.raises(ValueError, match=message):
        VisionLanguageEncoder(tiny("qwen2_vl"), lora=lora)


@pytest.mark.parametrize("targets", [["out_proj"], r".*out_proj"])
def test_targets_in_multihead_attention_are_refused(targets):
    network = nn.ModuleDict({"head": nn.MultiheadAttention(8, 2)})
    with pytest.raises(ValueError, match=r"leave head.out_proj out of `lora.targets`"):
        add_lora(network, {"targets": targets}, None)


def test_no_version_that_transformers_asks_of_peft_stands_in_the_way(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.0.0")
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), lora={"r": 2}, gradient_checkpointing=True)
    randomise(encoder)
    encoder.network.save_pretrained(tmp_path)
    assert_close(embed(VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(tmp_path))), embed(encoder))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))])
def test_a_copy_saves_its_own_adapter(tiny, tmp_path, again):
    encoder = again(VisionLanguageEncoder(tiny("qwen2_vl"), lora={"r": 2}))
    randomise(encoder)
    encoder.network.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.glob("*adapter*")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert_close(embed(VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(tmp_path))), embed(encoder))


# Modes


@families
def test_frozen_parts_stay_in_eval_mode_and_dropout_is_on(tiny, family):
    encoder = VisionLanguageEncoder(tiny(family), lora={"dropout": 0.5})
    randomise(encoder)
    batch = encoder.collate(SAMPLES)
    nn.ModuleList([encoder]).train()  # as a LightningModule does
    assert not torch.equal(encoder(**batch), encoder(**batch))
    for name, module in encoder.named_modules():
        weights = list(module.parameters())
        if weights:
            assert module.training == any(p.requires_grad for p in weights), name
    dropouts = [m for n, m in encoder.named_modules() if n.endswith("lora_dropout.default")]
    assert len(dropouts) == 2 * (4 if family == "phi3_v" else 7)
    assert all(dropout.training for dropout in dropouts)
    vision = encoder.network.model.get_submodule(FAMILIES[family].vision[0])
    assert not any(module.training for module in vision.modules())
    encoder.eval()
    assert torch.equal(encoder(**batch), encoder(**batch))


def test_a_frozen_batch_norm_keeps_its_statistics():
    encoder = PretrainedEncoder()
    encoder.frozen = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).requires_grad_(False)
    encoder.trained = nn.Linear(2, 2)
    assert encoder.train() is encoder
    assert [module.training for module in encoder.modules()] == [True, False, False, False, True]


@families
def test_a_frozen_vision_part_leaves_the_language_part_to_train(tiny, family):
    encoder = VisionLanguageEncoder(tiny(family), freeze_vision=True)
    vision = tuple(f"network.model.{module}" for module in FAMILIES[family].vision)
    everything = {name for name, _ in encoder.named_parameters()}
    assert trained(encoder) == {name for name in everything if not name.startswith(vision)}
    assert 0 < len(trained(encoder)) < len(everything)


@families
def test_without_an_adapter_everything_is_trained(tiny, family):
    encoder = VisionLanguageEncoder(tiny(family)).train()
    assert all(p.requires_grad for p in encoder.parameters())
    assert all(module.training for module in encoder.modules())
