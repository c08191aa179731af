"""An adapter that does not fit, cannot be read or asks for what is not supported is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from adapter_checks import assert_close, edit_config, embed, older_qwen, rewrite, trained
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder


@pytest.mark.parametrize(("module", "needed"), [("norm", True), ("lm_head", False)])
def test_a_whole_module_must_be_in_the_file_unless_it_is_the_language_head(tiny, module, needed, tmp_path):
    network = AutoModelForImageTextToText.from_pretrained(tiny("qwen2_vl"))
    options = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[module])
    get_peft_model(network, options).save_pretrained(tmp_path)
    folder = rewrite(tmp_path, lambda w: {k: v for k, v in w.items() if not k.endswith(f"{module}.weight")})
    if needed:
        with pytest.raises(ValueError, match=r"the adapter .* 5 missing \(.*language_model.norm.weight"):
            VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)
    else:
        assert trained(VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder))


def test_two_keys_of_one_weight_are_an_error(tiny, saved_adapter):
    key = "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_A.weight"
    folder = rewrite(saved_adapter[0], lambda weights: {**weights, older_qwen(key): weights[key] * 2})
    with pytest.raises(ValueError, match=r"the adapter .* 1 left over \(.*layers.1.mlp.up_proj.lora_A"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)


def test_missing_adapter_weights_are_an_error_that_lists_them(tiny, saved_adapter):
    folder = rewrite(
        saved_adapter[0], lambda w: {k: v for k, v in w.items() if "layers.1.mlp.up_proj.lora_A" not in k}
    )
    with pytest.raises(ValueError, match=r"the adapter .* 1 missing \(.*layers.1.mlp.up_proj.lora_A"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)


def test_adapter_weights_left_over_are_an_error_that_lists_them(tiny, saved_adapter):
    extra = {"base_model.model.model.language_model.layers.7.mlp.up_proj.lora_A.weight": torch.zeros(2, 32)}
    folder = rewrite(saved_adapter[0], lambda weights: {**weights, **extra})
    with pytest.raises(ValueError, match=r"the adapter .* 1 left over \(.*layers.7"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)


def test_an_adapter_for_a_model_of_equal_shape_is_refused(tiny, saved_adapter):
    with pytest.raises(ValueError, match=r"was trained on .*, a qwen2_vl; .* is a qwen2_5_vl"):
        VisionLanguageEncoder(tiny("qwen2_5_vl"), adapter=str(saved_adapter[0]))


def test_an_adapter_for_other_shapes_is_refused(tiny, saved_adapter, tmp_path):
    folder = shutil.copytree(saved_adapter[0], tmp_path / "other")
    edit_config(folder, base_model_name_or_path="/moved/away")
    rewrite(folder, lambda weights: {k: torch.cat([v, v], dim=1) for k, v in weights.items()})
    with pytest.raises(ValueError, match=r"adapter .* does not fit"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(folder))


def test_an_adapter_for_other_modules_is_refused(tiny, saved_adapter):
    folder = edit_config(saved_adapter[0], target_modules=["qkv_proj_of_another"])
    with pytest.raises(ValueError, match=r"adapter .* does not fit .*qkv_proj_of_another"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)


@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
def test_a_scale_for_modules_of_other_names_is_refused(tiny, saved_adapter, pattern):
    folder = edit_config(saved_adapter[0], **{pattern: {"model.layers.0.self_attn.q_proj": 4}})
    with pytest.raises(ValueError, match=r"adapter .* does not fit .* no modules for model\.layers\.0\.self"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "NEWER"}, "adapter_config.json has the `peft_type` 'NEWER': only 'LORA'"),
        ({"peft_type": None}, "adapter_config.json has the `peft_type` None"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "adapter_config.json has .* 'pissa_niter_4', which changed the model's own",
        ),
        ({"init_lora_weights": "corda"}, "adapter_config.json has the `init_lora_weights` 'corda'"),
        (
            {"megatron_config": {"a": 1}, "megatron_core": "this"},
            "megatron_config={'a': 1}, megatron_core='this'",
        ),
        ({"alora_invocation_tokens": [3]}, r"adapter_config.json has .*: alora_invocation_tokens=\[3\]"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "not supported .* layer_replication"),
        ({"runtime_config": {"ephemeral_gpu_offload": True}}, "not supported .* runtime_config"),
        ({"newer": True}, r"not supported \(peft .*\): newer=True"),
        ({"r": 0}, "`r` should be a positive integer"),
        ({"bias": "some"}, "cannot be put on .* some"),
        ({"task_type": "NONE"}, "adapter_config.json: Invalid task type"),
        ({"target_modules": ["mlp"]}, "cannot be put on .*Target module"),
        ({"target_modules": "("}, "cannot be put on .* unterminated"),
    ],
    ids=str,
)
def test_a_config_that_is_not_followed_is_refused_and_not_for_its_fit(tiny, saved_adapter, changes, message):
    folder = edit_config(saved_adapter[0], **changes)
    with pytest.raises(ValueError, match=f"(?s){message}") as refusal:
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)
    assert "does not fit" not in str(refusal.value)
    assert folder in str(refusal.value)


def test_a_setting_of_a_newer_peft_that_is_off_does_no_harm(tiny, saved_adapter):
    folder = edit_config(saved_adapter[0], newer=False, newest=None, options={})
    assert_close(embed(VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)), saved_adapter[1])


def test_an_adapter_of_another_kind_is_refused(tiny, tmp_path):
    network = AutoModelForImageTextToText.from_pretrained(tiny("qwen2_vl"))
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(network, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the `peft_type` 'IA3': only 'LORA' can be loaded"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", '{"peft_type": "LORA"', "\xff"])
def test_a_broken_config_is_named(tiny, saved_adapter, content):
    (saved_adapter[0] / "adapter_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"adapter/adapter_config.json (cannot be read|has the `peft_type` N)"
    ):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved_adapter[0]))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1"])
def test_broken_weights_are_named(tiny, saved_adapter, name, content):
    (saved_adapter[0] / "adapter_model.safetensors").unlink()
    (saved_adapter[0] / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"the weights of the adapter '.*adapter' cannot be read"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved_adapter[0]))


def test_a_folder_without_weights_or_config_is_named(tiny, saved_adapter):
    (saved_adapter[0] / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter' has no adapter_model.safetensors"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved_adapter[0]))
    (saved_adapter[0] / "adapter_config.json").unlink()
    with pytest.raises(OSError, match=r"adapter does not appear to have a file named adapter_config.json"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved_adapter[0]))


class _Code:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_pickled_weights_load_and_pickled_code_does_not_run(tiny, saved_adapter, tmp_path):
    weights = load_file(saved_adapter[0] / "adapter_model.safetensors")
    (saved_adapter[0] / "adapter_model.safetensors").unlink()
    torch.save(weights, saved_adapter[0] / "adapter_model.bin")
    assert_close(
        embed(VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved_adapter[0]))), saved_adapter[1]
    )
    torch.save({**weights, "code": _Code(tmp_path / "ran")}, saved_adapter[0] / "adapter_model.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved_adapter[0]))
    assert not (tmp_path / "ran").exists()
