"""An adapter that was saved comes back: from here, from peft, and from older versions of transformers."""

from __future__ import annotations

import copy

import pytest
import tiny_two_towers
import torch
from adapter_checks import (
    assert_close,
    edit_config,
    embed,
    embed_by_peft,
    families,
    older_qwen,
    randomise,
    rewrite,
    trained,
)
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import save_tiny
from transformers import AutoModelForImageTextToText

from fanoise_lightning.encoders.families import FAMILIES
from fanoise_lightning.encoders.two_tower import TwoTowerEncoder
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder


@families
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_that_peft_saved_comes_back_and_trains_on(tiny, family, dora, tmp_path):
    """The oracle is peft's own model."""
    plain = VisionLanguageEncoder(tiny(family))
    options = {"r": 2, "use_dora": dora, "target_modules": FAMILIES[family].lora_targets}
    model = AutoModelForImageTextToText.from_pretrained(tiny(family))
    model = get_peft_model(model, LoraConfig(**options)).eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    plain.network.model = model.get_base_model().model
    expected = embed(plain)

    encoder = VisionLanguageEncoder(tiny(family), adapter=str(tmp_path))
    assert_close(embed(encoder), expected)
    assert (embed(VisionLanguageEncoder(tiny(family))) - expected).abs().max() > 0.01
    assert trained(encoder) == trained(VisionLanguageEncoder(tiny(family), lora={"r": 2, "dora": dora}))


def test_an_adapter_comes_back_to_the_bit_on_bfloat16_weights(tiny, tmp_path):
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), lora={"r": 2}, dtype="bfloat16")
    randomise(encoder)
    encoder.network.save_pretrained(tmp_path)
    again = dict(
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(tmp_path), dtype="bfloat16").named_parameters()
    )
    assert all(torch.equal(again[name], p) for name, p in encoder.named_parameters() if p.requires_grad)


@families
@pytest.mark.parametrize("dora", [False, True])
def test_peft_reads_an_adapter_that_was_trained_here(tiny, family, dora, tmp_path):
    encoder = VisionLanguageEncoder(tiny(family), lora={"r": 2, "dora": dora})
    randomise(encoder)
    encoder.network.save_pretrained(tmp_path)
    assert_close(embed_by_peft(tiny(family), tmp_path), embed(encoder))


@pytest.mark.parametrize("family", tiny_two_towers.BUILDERS)
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_of_two_towers_passes_both_ways(tiny, family, dora, tmp_path):
    encoder = TwoTowerEncoder(tiny(family), lora={"r": 2, "dora": dora})
    randomise(encoder)
    encoder.network.save_pretrained(tmp_path)
    again = TwoTowerEncoder(tiny(family), adapter=str(tmp_path))
    assert trained(again) == trained(encoder)
    assert_close(embed(again), embed(encoder))
    plain = TwoTowerEncoder(tiny(family))
    assert (embed(plain) - embed(encoder)).abs().max() > 0.01
    plain.network = PeftModel.from_pretrained(plain.network, tmp_path).get_base_model()
    assert_close(embed(plain), embed(encoder))


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"v_proj": 3}},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"layers_to_transform": [1]},
        {"exclude_modules": ["v_proj"]},
        {"modules_to_save": ["norm", "visual.merger"]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["v_proj"], "target_parameters": ["q_proj.weight"]},
        {"trainable_token_indices": [30, 31, 40, 41, 42, 43, 44]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "eva"},
    ],
    ids=str,
)
def test_what_the_config_of_an_adapter_says_is_done(tiny, options, tmp_path):
    network = AutoModelForImageTextToText.from_pretrained(tiny("qwen2_vl"))
    network = get_peft_model(
        network, LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"]} | options)
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.2
    network.save_pretrained(tmp_path)
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(tmp_path))
    assert_close(embed(encoder), embed_by_peft(tiny("qwen2_vl"), tmp_path))
    expected = {
        name.removeprefix("base_model.model.") for name, p in network.named_parameters() if p.requires_grad
    }
    assert {name.removeprefix("network.") for name in trained(encoder)} == {
        name for name in expected if not name.startswith("lm_head")
    }


def older_llava(key: str) -> str:
    key = key.replace("model.model.language_model.", "model.language_model.model.")
    return key.replace("model.model.vision_tower.", "model.vision_tower.")


@pytest.mark.parametrize(
    ("family", "older"),
    [("qwen2_vl", older_qwen), ("qwen2_5_vl", older_qwen), ("llava_next", older_llava)],
)
@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"modules_to_save": ["norm"]}], ids=["lora", "dora", "whole module"]
)
def test_an_adapter_of_the_older_key_layout_loads(tiny, family, older, options, tmp_path):
    """The layout of the published VLM2Vec-Qwen2-VL."""
    network = AutoModelForImageTextToText.from_pretrained(tiny(family))
    targets = ["q_proj", "v_proj", *(["qkv"] if family.startswith("qwen") else [])]
    network = get_peft_model(network, LoraConfig(r=2, target_modules=targets, **options))
    randomise(network)
    network.save_pretrained(tmp_path)
    expected = embed_by_peft(tiny(family), tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert all(older(key) != key for key in keys)
    old = rewrite(tmp_path, lambda weights: {older(key): value for key, value in weights.items()})
    assert_close(embed(VisionLanguageEncoder(tiny(family), adapter=old)), expected)


@families
def test_an_adapter_of_the_model_without_its_head_loads(tiny, family, tmp_path):
    plain = VisionLanguageEncoder(tiny(family))
    targets = ["o_proj", "down_proj"]
    network = get_peft_model(
        copy.deepcopy(plain.network.model), LoraConfig(r=2, target_modules=targets)
    ).eval()
    randomise(network)
    network.save_pretrained(tmp_path)
    plain.network.model = network.get_base_model()
    assert_close(embed(VisionLanguageEncoder(tiny(family), adapter=str(tmp_path))), embed(plain))


def test_an_adapter_without_the_prefix_of_peft_loads(tiny, saved_adapter):
    bare = rewrite(
        saved_adapter[0], lambda weights: {k.removeprefix("base_model.model."): v for k, v in weights.items()}
    )
    assert_close(embed(VisionLanguageEncoder(tiny("qwen2_vl"), adapter=bare)), saved_adapter[1])


def test_an_adapter_whose_base_has_moved_still_loads(tiny, saved_adapter):
    moved = edit_config(saved_adapter[0], base_model_name_or_path="/moved/away")
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), adapter=moved)
    assert_close(embed(encoder), saved_adapter[1])


def test_an_adapter_fits_the_same_model_elsewhere(saved_adapter, tmp_path):
    (tmp_path / "copy").mkdir()
    encoder = VisionLanguageEncoder(save_tiny(tmp_path / "copy", "qwen2_vl"), adapter=str(saved_adapter[0]))
    assert_close(embed(encoder), saved_adapter[1])
