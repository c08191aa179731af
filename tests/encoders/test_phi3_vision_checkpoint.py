"""Files of Phi-3.5-vision: the published keys in and out, and adapters as the published code writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from fanoise_lightning.encoders.phi3_vision import Phi3VForCausalLM, Phi3VModel

HIDDEN, VOCABULARY, WIDTH, LAYERS = 32, 12, 16, 2
PUBLISHED = {
    "architectures": ["Phi3VForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"},
    "model_type": "phi3_v",
    "torch_dtype": "float32",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "sliding_window": 262144,
    "embd_layer": {"embedding_cls": "image", "hd_transform_order": "sub_glb", "use_hd_transform": True},
    "img_processor": {"name": "clip_vision_model", "image_dim_out": WIDTH, "num_img_tokens": 144},
    "vision_config": {
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 336,
        "patch_size": 14,
    },
}
ALIAS, TABLE = "model.vision_embed_tokens.wte.weight", "model.embed_tokens.weight"
CLIP = "model.vision_embed_tokens.img_processor.vision_model"


def published_weights() -> dict[str, torch.Tensor]:
    """Every key and shape of the published checkpoint, scaled down, written out by hand."""
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCABULARY, HIDDEN),
        TABLE: (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "model.vision_embed_tokens.glb_GN": (1, 1, 4 * WIDTH),
        "model.vision_embed_tokens.sub_GN": (1, 1, 1, 4 * WIDTH),
        "model.vision_embed_tokens.img_projection.0.weight": (HIDDEN, 4 * WIDTH),
        "model.vision_embed_tokens.img_projection.0.bias": (HIDDEN,),
        "model.vision_embed_tokens.img_projection.2.weight": (HIDDEN, HIDDEN),
        "model.vision_embed_tokens.img_projection.2.bias": (HIDDEN,),
        f"{CLIP}.embeddings.class_embedding": (WIDTH,),
        f"{CLIP}.embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        f"{CLIP}.embeddings.position_embedding.weight": (577, WIDTH),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.self_attn.qkv_proj.weight"] = (3 * HIDDEN, HIDDEN)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{layer}.mlp.gate_up_proj.weight"] = (96, HIDDEN)
        shapes[f"{layer}.mlp.down_proj.weight"] = (HIDDEN, 48)
        shapes[f"{layer}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (HIDDEN,)
    linear = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkv"}
    linear |= {"self_attn.out_proj": (WIDTH, WIDTH), "mlp.fc1": (24, WIDTH), "mlp.fc2": (WIDTH, 24)}
    for i in range(3):
        for name, shape in linear.items():
            shapes[f"{CLIP}.encoder.layers.{i}.{name}.weight"] = shape
            shapes[f"{CLIP}.encoder.layers.{i}.{name}.bias"] = shape[:1]
    norms = [f"encoder.layers.{i}.layer_norm{k}" for i in range(3) for k in (1, 2)]
    for name in ["pre_layrnorm", "post_layernorm", *norms]:
        shapes[f"{CLIP}.{name}.weight"] = shapes[f"{CLIP}.{name}.bias"] = (WIDTH,)
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}


def write(folder: Path, weights: dict[str, torch.Tensor], **changes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**PUBLISHED, **changes}))
    save_file({key: value.clone() for key, value in weights.items()}, folder / "model.safetensors")
    return folder


def load(folder: Path) -> tuple[Phi3VForCausalLM, dict]:
    return AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def batch() -> dict[str, torch.Tensor]:
    """One row of an image of one crop and three words."""
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.tensor([[1, *[-1] * 313, 4, 5, 6]]),
        "pixel_values": torch.randn(1, 2, 3, 336, 336, generator=generator),
        "image_sizes": torch.tensor([[336, 336]]),
    }


@torch.no_grad()
def hidden(model: Phi3VForCausalLM) -> torch.Tensor:
    return model.eval().model(**batch()).last_hidden_state


@pytest.mark.parametrize("names", [[TABLE], [ALIAS], [TABLE, ALIAS]])
def test_published_keys_are_read_and_written_back(tmp_path, names):
    expected = published_weights()
    table = expected.pop(TABLE)
    model, info = load(write(tmp_path, {**expected, **dict.fromkeys(names, table)}))

    assert isinstance(model, Phi3VForCausalLM)
    assert isinstance(model.model, Phi3VModel)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same(model.state_dict(), {**expected, TABLE: table})
    model.save_pretrained(tmp_path / "saved")
    assert same(load_file(tmp_path / "saved" / "model.safetensors"), {**expected, TABLE: table})
    again, info = load(tmp_path / "saved")
    assert not info["missing_keys"]
    assert torch.equal(hidden(again), hidden(model))


def test_a_fresh_model_writes_the_published_keys(tmp_path):
    config = AutoConfig.from_pretrained(write(tmp_path, {}))
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "saved")
    shapes = {k: v.shape for k, v in load_file(tmp_path / "saved" / "model.safetensors").items()}
    assert shapes == {k: v.shape for k, v in published_weights().items()}


@pytest.mark.parametrize(
    "key", [TABLE, "lm_head.weight", "model.vision_embed_tokens.sub_GN", f"{CLIP}.pre_layrnorm.bias"]
)
def test_missing_keys_are_reported(tmp_path, key):
    weights = published_weights()
    del weights[key]
    model, info = load(write(tmp_path, weights))
    assert info["missing_keys"] == {key}
    assert torch.isfinite(model.state_dict()[key]).all()


def test_the_other_auto_classes_read_the_same_folder(tmp_path):
    model, _ = load(write(tmp_path, published_weights()))
    inner, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(inner, Phi3VModel)
    assert not info["missing_keys"]
    assert info["unexpected_keys"] == {"lm_head.weight"}
    assert same(inner.state_dict(), model.model.state_dict())
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), Phi3VForCausalLM)


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_the_config_survives_saving_and_reads_su_as_longrope(tmp_path, key):
    scaling = dict(PUBLISHED["rope_scaling"])
    scaling[key] = scaling.pop("type")
    config = AutoConfig.from_pretrained(write(tmp_path, {}, rope_scaling=scaling))
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.rope_parameters["original_max_position_embeddings"] == 4096
    config.save_pretrained(tmp_path / "saved")
    again = AutoConfig.from_pretrained(tmp_path / "saved")
    assert again.to_diff_dict() == config.to_diff_dict()


def test_the_image_tower_may_be_given_when_loading(tmp_path):
    changes = {key: value for key, value in PUBLISHED.items() if key != "vision_config"}
    folder = write(tmp_path, published_weights())
    (folder / "config.json").write_text(json.dumps(changes))
    with pytest.raises(ValueError, match="image_dim_out is 16 but vision_config"):
        load(folder)
    config = AutoConfig.from_pretrained(folder, vision_config=PUBLISHED["vision_config"])
    model = AutoModelForImageTextToText.from_pretrained(folder, config=config)
    assert same(model.state_dict(), published_weights())


TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "out_proj"]


def write_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """An adapter under the published code's keys; returns the change of each weight that it stands for."""
    folder.mkdir()
    adapter, change = {}, {}
    for key, weight in published_weights().items():
        if key.removesuffix(".weight").rpartition(".")[2] not in TARGETS or weight.dim() != 2:
            continue
        prefix = "base_model.model." + key.removesuffix("weight")
        a, b = torch.randn(2, weight.shape[1]) * 0.2, torch.randn(weight.shape[0], 2) * 0.2
        adapter[prefix + "lora_A.weight"], adapter[prefix + "lora_B.weight"] = a, b
        change[key] = b @ a * (16 / 2)
    save_file(adapter, folder / "adapter_model.safetensors")
    LoraConfig(r=2, lora_alpha=16, lora_dropout=0.1, target_modules=TARGETS).save_pretrained(folder)
    return change


def test_a_published_adapter_loads_exactly(tmp_path):
    weights = published_weights()
    change = write_adapter(tmp_path / "adapter")
    assert len(change) == 4 * LAYERS + 4 * 3
    merged, _ = load(write(tmp_path / "merged", {k: v + change.get(k, 0) for k, v in weights.items()}))
    model, _ = load(write(tmp_path / "base", weights))
    before = hidden(model)
    info = model.load_adapter(str(tmp_path / "adapter"))

    assert not info.missing_keys
    assert not info.unexpected_keys
    torch.testing.assert_close(hidden(model), hidden(merged), atol=1e-4, rtol=1e-4)
    assert (hidden(model) - before).abs().max() > 0.1


def test_peft_writes_the_published_adapter_keys(tmp_path):
    write_adapter(tmp_path / "by_hand")
    model, _ = load(write(tmp_path / "base", published_weights()))
    lora = LoraConfig(r=2, lora_alpha=16, target_modules=TARGETS, init_lora_weights=False)
    tuned = get_peft_model(model, lora)
    tuned.save_pretrained(tmp_path / "peft")
    shapes = [
        {key: value.shape for key, value in load_file(tmp_path / name / "adapter_model.safetensors").items()}
        for name in ("by_hand", "peft")
    ]
    assert shapes[0] == shapes[1]
    again, _ = load(tmp_path / "base")
    again.load_adapter(str(tmp_path / "peft"))
    assert torch.equal(hidden(again), hidden(tuned.base_model.model))


def test_lora_trains_with_gradient_checkpointing(tmp_path):
    model, _ = load(write(tmp_path, published_weights()))
    model.gradient_checkpointing_enable()
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS[:4]))
    tuned.enable_input_require_grads()
    tuned.train().model.model(**batch()).last_hidden_state.sum().backward()
    trained = {n for n, p in tuned.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert trained == {n for n, p in tuned.named_parameters() if "lora_B" in n}
