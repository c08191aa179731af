from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiny_two_towers
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import BUILDERS, picture, save_tiny
from torch import nn
from transformers import AutoModelForImageTextToText

from fanoise_lightning import Sample
from fanoise_lightning.encoders.adapters import add_lora, train_only_what_trains
from fanoise_lightning.encoders.families import FAMILIES
from fanoise_lightning.encoders.two_tower import TwoTowerEncoder
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder

families = pytest.mark.parametrize("family", sorted(BUILDERS))
SAMPLES = [Sample("a red apple"), Sample("what is it", picture(60, 40)), Sample(image=picture(50, 90, 1))]


def embed(encoder: VisionLanguageEncoder | TwoTowerEncoder) -> torch.Tensor:
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


def embed_by_peft(model: str, adapter: Path) -> torch.Tensor:
    """The embeddings of a vision-language model that peft has put an adapter on."""
    encoder = VisionLanguageEncoder(model)
    network = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(model), adapter)
    encoder.network.model = network.get_base_model().model
    return embed(encoder)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


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
        ({"rank": 8}, "`lora` has no rank; it has r, alpha"),
        ({"targets": "nothing"}, "'nothing' names no module of Qwen2VL"),
        ({"targets": []}, r"`lora.targets` \[\] names no module"),
        ({"targets": ["q_proj", "nonsense", "k_prj"]}, "^'nonsense', 'k_prj' of .* the nearest: k_proj"),
        (
            {"targets": ["layers.0.self_attn.q_proj", "layers.9.self_attn.q_proj"]},
            r"^'layers\.9.* of `lora.t",
        ),
        ({"targets": "(q_proj"}, r"`lora.targets` '\(q_proj' is no regular expression"),
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
def test_an_adapter_of_two_towers_passes_both_ways(family, dora, tmp_path):
    (tmp_path / "model").mkdir()
    model = tiny_two_towers.save_tiny(tmp_path / "model", family)
    encoder = TwoTowerEncoder(model, lora={"r": 2, "dora": dora})
    randomise(encoder)
    encoder.network.save_pretrained(tmp_path / "adapter")
    again = TwoTowerEncoder(model, adapter=str(tmp_path / "adapter"))
    assert trained(again) == trained(encoder)
    assert_close(embed(again), embed(encoder))
    plain = TwoTowerEncoder(model)
    assert (embed(plain) - embed(encoder)).abs().max() > 0.01
    plain.network = PeftModel.from_pretrained(plain.network, tmp_path / "adapter").get_base_model()
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


def _rewrite(folder: Path, change) -> str:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return str(folder)


def _older_qwen(key: str) -> str:
    return key.replace("model.language_model.", "model.").replace("model.model.visual.", "model.visual.")


def _older_llava(key: str) -> str:
    key = key.replace("model.model.language_model.", "model.language_model.model.")
    return key.replace("model.model.vision_tower.", "model.vision_tower.")


@pytest.mark.parametrize(
    ("family", "older"),
    [("qwen2_vl", _older_qwen), ("qwen2_5_vl", _older_qwen), ("llava_next", _older_llava)],
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
    old = _rewrite(tmp_path, lambda weights: {older(key): value for key, value in weights.items()})
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


def test_an_adapter_without_the_prefix_of_peft_loads(tiny, saved):
    bare = _rewrite(
        saved[0], lambda weights: {k.removeprefix("base_model.model."): v for k, v in weights.items()}
    )
    assert_close(embed(VisionLanguageEncoder(tiny("qwen2_vl"), adapter=bare)), saved[1])


@pytest.mark.parametrize(("module", "needed"), [("norm", True), ("lm_head", False)])
def test_a_whole_module_must_be_in_the_file_unless_it_is_the_language_head(tiny, module, needed, tmp_path):
    network = AutoModelForImageTextToText.from_pretrained(tiny("qwen2_vl"))
    options = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[module])
    get_peft_model(network, options).save_pretrained(tmp_path)
    folder = _rewrite(tmp_path, lambda w: {k: v for k, v in w.items() if not k.endswith(f"{module}.weight")})
    if needed:
        with pytest.raises(ValueError, match=r"the adapter .* 5 missing \(.*language_model.norm.weight"):
            VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)
    else:
        assert trained(VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder))


def test_two_keys_of_one_weight_are_an_error(tiny, saved):
    key = "base_model.model.model.language_model.layers.1.mlp.up_proj.lora_A.weight"
    folder = _rewrite(saved[0], lambda weights: {**weights, _older_qwen(key): weights[key] * 2})
    with pytest.raises(ValueError, match=r"the adapter .* 1 left over \(.*layers.1.mlp.up_proj.lora_A"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)


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


def edit_config(folder: Path, **changes) -> str:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(folder)


def forget_base(folder: Path) -> str:
    return edit_config(folder, base_model_name_or_path="/moved/away")


def test_an_adapter_for_other_shapes_is_refused(tiny, saved, tmp_path):
    folder = shutil.copytree(saved[0], tmp_path / "other")
    forget_base(folder)
    _rewrite(folder, lambda weights: {k: torch.cat([v, v], dim=1) for k, v in weights.items()})
    with pytest.raises(ValueError, match=r"adapter .* does not fit"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(folder))


def test_an_adapter_for_other_modules_is_refused(tiny, saved):
    folder = edit_config(saved[0], target_modules=["qkv_proj_of_another"])
    with pytest.raises(ValueError, match=r"adapter .* does not fit .*qkv_proj_of_another"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)


@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
def test_a_scale_for_modules_of_other_names_is_refused(tiny, saved, pattern):
    folder = edit_config(saved[0], **{pattern: {"model.layers.0.self_attn.q_proj": 4}})
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
def test_a_config_that_is_not_followed_is_refused_and_not_for_its_fit(tiny, saved, changes, message):
    folder = edit_config(saved[0], **changes)
    with pytest.raises(ValueError, match=f"(?s){message}") as refusal:
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)
    assert "does not fit" not in str(refusal.value)
    assert folder in str(refusal.value)


def test_a_setting_of_a_newer_peft_that_is_off_does_no_harm(tiny, saved):
    folder = edit_config(saved[0], newer=False, newest=None, options={})
    assert_close(embed(VisionLanguageEncoder(tiny("qwen2_vl"), adapter=folder)), saved[1])


def test_an_adapter_of_another_kind_is_refused(tiny, tmp_path):
    network = AutoModelForImageTextToText.from_pretrained(tiny("qwen2_vl"))
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(network, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the `peft_type` 'IA3': only 'LORA' can be loaded"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", '{"peft_type": "LORA"', "\xff"])
def test_a_broken_config_is_named(tiny, saved, content):
    (saved[0] / "adapter_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"adapter/adapter_config.json (cannot be read|has the `peft_type` N)"
    ):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved[0]))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1"])
def test_broken_weights_are_named(tiny, saved, name, content):
    (saved[0] / "adapter_model.safetensors").unlink()
    (saved[0] / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"the weights of the adapter '.*adapter' cannot be read"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved[0]))


def test_a_folder_without_weights_or_config_is_named(tiny, saved):
    (saved[0] / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter' has no adapter_model.safetensors"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved[0]))
    (saved[0] / "adapter_config.json").unlink()
    with pytest.raises(OSError, match=r"adapter does not appear to have a file named adapter_config.json"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved[0]))


class _Code:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_pickled_weights_load_and_pickled_code_does_not_run(tiny, saved, tmp_path):
    weights = load_file(saved[0] / "adapter_model.safetensors")
    (saved[0] / "adapter_model.safetensors").unlink()
    torch.save(weights, saved[0] / "adapter_model.bin")
    assert_close(embed(VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved[0]))), saved[1])
    torch.save({**weights, "code": _Code(tmp_path / "ran")}, saved[0] / "adapter_model.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        VisionLanguageEncoder(tiny("qwen2_vl"), adapter=str(saved[0]))
    assert not (tmp_path / "ran").exists()


def test_an_adapter_whose_base_has_moved_still_loads(tiny, saved):
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), adapter=forget_base(saved[0]))
    assert_close(embed(encoder), saved[1])


def test_an_adapter_fits_the_same_model_elsewhere(saved, tmp_path):
    (tmp_path / "copy").mkdir()
    encoder = VisionLanguageEncoder(save_tiny(tmp_path / "copy", "qwen2_vl"), adapter=str(saved[0]))
    assert_close(embed(encoder), saved[1])
