from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import BUILDERS, picture, save_tiny
from torch import nn
from transformers import AutoModelForImageTextToText

from fanoise_lightning import Sample
from fanoise_lightning.encoders.adapters import add_lora, train_only_what_trains
from fanoise_lightning.encoders.families import FAMILIES
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder

families = pytest.mark.parametrize("family", sorted(BUILDERS))
SAMPLES = [Sample("a red apple"), Sample("what is it", picture(60, 40)), Sample(image=picture(50, 90, 1))]


def embed(encoder: VisionLanguageEncoder) -> torch.Tensor:
    with torch.no_grad():
        return encoder.eval()(**encoder.collate(SAMPLES))


def trained(encoder: nn.Module) -> set[str]:
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def randomise(encoder: nn.Module) -> None:
    """Adapters begin with no effect: give them one."""
    generator = torch.Generator().manual_seed(1)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


@pytest.fixture
def saved(tiny, tmp_path):
    """The folder of a Qwen2-VL adapter, and the embeddings with it."""
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), lora={"r": 2})
    randomise(encoder)
    encoder.network.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", embed(encoder)


# A fresh adapter


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
    torch.testing.assert_close(embed(encoder), embed(plain), atol=1e-6, rtol=0)
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
        ({"rank": 8}, "`lora` has no rank; it has r, alpha"),
        ({"targets": "nothing"}, "'nothing' names no module of Qwen2VL"),
        ({"init": "zero"}, "'default' or 'gaussian', got 'zero'"),
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
    network = nn.Sequential(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    train_only_what_trains(network.train())
    assert [module.training for module in network.modules()] == [True, False, False, False, True]


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


# A saved adapter


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
    torch.testing.assert_close(embed(encoder), expected, atol=1e-6, rtol=0)
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


def _rewrite(folder: Path, change) -> str:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return str(folder)


def test_an_adapter_of_the_older_key_layout_loads(tiny, saved):
    """The layout of the published VLM2Vec-Qwen2-VL."""
    folder, expected = saved
    old = _rewrite(
        folder, lambda w: {k.replace("model.language_model.layers", "model.layers"): v for k, v in w.items()}
    )
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), adapter=old)
    torch.testing.assert_close(embed(encoder), expected, atol=1e-6, rtol=0)


def test_missing_adapter_weights_are_an_error_that_lists_them(tiny, saved):
    folder = _rewrite(
        saved[0], lambda w: {k: v for k, v in w.items() if "layers.1.mlp.up_proj.lora_A" not in k}
    )
    with pytest.raises(ValueError, match=r"the adapter .* 1 missing \(.*layers.1.mlp.up_proj.lora_A"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)


def test_adapter_weights_left_over_are_an_error_that_lists_them(tiny, saved):
    extra = {"base_model.model.model.language_model.layers.7.mlp.up_proj.lora_A.weight": torch.zeros(2, 32)}
    folder = _rewrite(saved[0], lambda weights: {**weights, **extra})
    with pytest.raises(ValueError, match=r"the adapter .* 1 left over \(.*layers.7"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)


def test_an_adapter_for_a_model_of_equal_shape_is_refused(tiny, saved):
    with pytest.raises(ValueError, match=r"was trained on .*, a qwen2_vl; .* is a qwen2_5_vl"):
        VisionLanguageEncoder(tiny("qwen2_5_vl"), adapter=str(saved[0]))


def forget_base(folder: Path) -> str:
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = "/moved/away"
    file.write_text(json.dumps(config))
    return str(folder)


def test_an_adapter_for_other_shapes_is_refused(tiny, saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "other")
    forget_base(folder)
    _rewrite(folder, lambda weights: {k: torch.cat([v, v], dim=1) for k, v in weights.items()})
    with pytest.raises(ValueError, match=r"adapter .* does not fit"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(folder))


def test_an_adapter_for_other_modules_is_refused(tiny, saved):
    config = json.loads((saved[0] / "adapter_config.json").read_text())
    config["target_modules"] = ["qkv_proj_of_another"]
    (saved[0] / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"adapter .* does not fit"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=forget_base(saved[0]))


def test_an_adapter_whose_base_has_moved_still_loads(tiny, saved):
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), adapter=forget_base(saved[0]))
    torch.testing.assert_close(embed(encoder), saved[1], atol=1e-6, rtol=0)


def test_an_adapter_fits_the_same_model_elsewhere(saved, tmp_path):
    (tmp_path / "copy").mkdir()
    encoder = VisionLanguageEncoder(save_tiny(tmp_path / "copy", "qwen2_vl"), adapter=str(saved[0]))
    torch.testing.assert_close(embed(encoder), saved[1], atol=1e-6, rtol=0)
