from __future__ import annotations

import json
import logging
import pickle
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import BUILDERS, make_image, save_tiny

from fanoise_lightning import Sample
from fanoise_lightning.encoders import loading
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder
from fanoise_lightning.encoders.vision_language_collate import VisionLanguageCollate

families = pytest.mark.parametrize("family", sorted(BUILDERS))
CAT, DOG, COW = make_image(60, 40, 0), make_image(50, 90, 1), make_image(33, 33, 2)
SAMPLES = [
    Sample("a red apple on the table"),
    Sample(image=CAT),
    Sample("what is it", DOG),
    Sample("first <|image_2|>, then <|image_1|>", (CAT, COW)),
    Sample("both", (DOG, CAT)),
    Sample("x"),
]


def embed(encoder: VisionLanguageEncoder, samples: list[Sample]) -> torch.Tensor:
    with torch.no_grad():
        return encoder(**encoder.collate(samples))


@families
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["last", "mean", "eos"])
def test_each_row_of_a_mixed_batch_is_the_row_alone(tiny, family, padding_side, pooling):
    encoder = VisionLanguageEncoder(tiny(family), pooling=pooling)
    encoder.collate.processor.tokenizer.padding_side = padding_side
    alone = torch.cat([embed(encoder, [sample]) for sample in SAMPLES])
    torch.testing.assert_close(embed(encoder, SAMPLES), alone, atol=1e-5, rtol=0)


@families
def test_a_vector_is_the_last_state_of_the_models_own_forward(tiny, family):
    encoder = VisionLanguageEncoder(tiny(family))
    model = transformers.AutoModelForImageTextToText.from_pretrained(tiny(family)).eval()
    processor = transformers.AutoProcessor.from_pretrained(tiny(family))
    own = {"llava_next": "<image>", "phi3_v": "<|image_1|>"}
    place = own.get(family, "<|vision_start|><|image_pad|><|vision_end|>")
    inputs = processor(text=[f"{place} what is it"], images=[DOG], return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(embed(encoder, [SAMPLES[2]]), states[:, -1], atol=1e-6, rtol=0)


@families
def test_an_image_stands_where_its_placeholder_is(tiny, family):
    encoder = VisionLanguageEncoder(tiny(family))
    shown = embed(
        encoder,
        [
            Sample("<|image_1|> and <|image_2|>", (CAT, DOG)),
            Sample("<|image_2|> and <|image_1|>", (DOG, CAT)),
            Sample("<|image_1|> and <|image_2|>", (DOG, CAT)),
            Sample("<|image_1|> and <|image_1|>", CAT),
            Sample("<|image_1|> and <|image_2|>", (CAT, CAT)),
        ],
    )
    torch.testing.assert_close(shown[0], shown[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(shown[3], shown[4], atol=1e-5, rtol=0)
    assert (shown[0] - shown[2]).abs().max() > 1e-3


def test_images_stand_before_a_text_without_placeholders(tiny):
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"))
    plain, marked = embed(
        encoder, [Sample("both", (CAT, DOG)), Sample("<|image_1|> <|image_2|> both", (CAT, DOG))]
    )
    torch.testing.assert_close(plain, marked, atol=1e-5, rtol=0)


def test_eos_pooling_reads_the_state_behind_the_text(tiny):
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), pooling="eos")
    last = VisionLanguageEncoder(tiny("qwen2_vl"), split_special_tokens=False)
    by_hand = embed(last, [Sample("a cat<|im_end|>")])
    torch.testing.assert_close(embed(encoder, [Sample("a cat")]), by_hand, atol=1e-6, rtol=0)


def test_the_positions_of_vlm2vec_are_plain(tiny):
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), positions="vlm2vec")
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(tiny("qwen2_vl")).model.eval()
    processor = transformers.AutoProcessor.from_pretrained(tiny("qwen2_vl"))
    inputs = processor(text=["<|image_pad|> what is it"], images=[DOG], return_tensors="pt")
    tokens = inputs["input_ids"].shape[1]
    plain = torch.arange(tokens).repeat(3, 1, 1)
    with torch.no_grad():
        states = model(**inputs, position_ids=plain).last_hidden_state
        own = model(**inputs).last_hidden_state
    found = embed(encoder, [SAMPLES[2]])
    torch.testing.assert_close(found, states[:, -1], atol=1e-6, rtol=0)
    assert (found - own[:, -1]).abs().max() > 1e-3
    alone = torch.cat([embed(encoder, [sample]) for sample in SAMPLES])
    torch.testing.assert_close(embed(encoder, SAMPLES), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next"])
def test_the_positions_of_vlm2vec_are_refused_elsewhere(tiny, family):
    with pytest.raises(ValueError, match="a recipe of Qwen2-VL"):
        VisionLanguageEncoder(tiny(family), positions="vlm2vec")


@families
def test_the_collate_is_plain_tensors_and_can_be_pickled(tiny, family):
    collate = VisionLanguageCollate(tiny(family))
    assert not any(isinstance(value, torch.nn.Module) for value in vars(collate).values())
    batch, copy = collate(SAMPLES), pickle.loads(pickle.dumps(collate))(SAMPLES)
    assert batch.keys() == copy.keys()
    assert all(isinstance(value, torch.Tensor) for value in batch.values())
    assert all(torch.equal(batch[name], copy[name]) for name in batch)


def test_collating_needs_no_weights(tiny, tmp_path):
    folder = shutil.copytree(
        tiny("qwen2_vl"), tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")
    )
    assert VisionLanguageCollate(str(folder))(SAMPLES)["input_ids"].shape[0] == len(SAMPLES)


def test_the_language_head_is_gone_and_no_cache_is_built(tiny):
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"))
    assert not any("lm_head" in name for name, _ in encoder.named_parameters())
    seen = {}
    encoder.network.model.language_model.register_forward_hook(
        lambda module, args, kwargs, output: seen.update(cache=output.past_key_values), with_kwargs=True
    )
    assert embed(encoder, SAMPLES).shape == (len(SAMPLES), encoder.embedding_dim)
    assert seen == {"cache": None}


@families
def test_bfloat16_weights_give_float32_vectors_close_to_those_of_float32(tiny, family):
    exact = embed(VisionLanguageEncoder(tiny(family)), SAMPLES)
    rough = embed(VisionLanguageEncoder(tiny(family), dtype="bfloat16", attn_implementation="eager"), SAMPLES)
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rough).min() > 0.999


def test_eager_and_sdpa_attention_agree(tiny):
    eager = VisionLanguageEncoder(tiny("qwen2_vl"), attn_implementation="eager")
    assert eager.network.config._attn_implementation == "eager"
    sdpa = VisionLanguageEncoder(tiny("qwen2_vl"), attn_implementation="sdpa")
    torch.testing.assert_close(embed(eager, SAMPLES), embed(sdpa, SAMPLES), atol=1e-5, rtol=0)


@families
def test_gradient_checkpointing_changes_no_gradient(tiny, family):
    gradients = []
    for checkpointing in (False, True):
        encoder = VisionLanguageEncoder(tiny(family), gradient_checkpointing=checkpointing).train()
        assert encoder.network.is_gradient_checkpointing == checkpointing
        encoder(**encoder.collate(SAMPLES)).square().sum().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


# What is loaded


def _rewrite(folder, change):
    weights = load_file(f"{folder}/model.safetensors")
    save_file(change(weights), f"{folder}/model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("layout", ["2024", "2025"])
def test_both_key_layouts_of_qwen_load_whole(tiny, tmp_path, family, layout):
    folder = shutil.copytree(tiny(family), tmp_path / layout)

    def rename(weights):
        bare = {key.removeprefix("model."): value for key, value in weights.items()}
        bare = {key.replace("language_model.", "", 1): value for key, value in bare.items()}
        if layout == "2024":
            prefixes = {"visual.": "visual.", "": "model."}
        else:
            prefixes = {"visual.": "model.visual.", "": "model.language_model."}
        return {
            key
            if key.startswith("lm_head")
            else prefixes["visual."] + key.removeprefix("visual.")
            if key.startswith("visual.")
            else prefixes[""] + key: value
            for key, value in bare.items()
        }

    _rewrite(folder, rename)
    expected = embed(VisionLanguageEncoder(tiny(family)), SAMPLES)
    torch.testing.assert_close(
        embed(VisionLanguageEncoder(str(folder)), SAMPLES), expected, atol=1e-6, rtol=0
    )


def test_missing_weights_are_an_error_that_lists_them(tiny, tmp_path):
    folder = shutil.copytree(tiny("qwen2_vl"), tmp_path / "holes")
    _rewrite(folder, lambda weights: {k: v for k, v in weights.items() if "visual.merger" not in k})
    with pytest.raises(ValueError, match=r"missing \(model.visual.merger"):
        VisionLanguageEncoder(str(folder))


def test_weights_left_over_are_an_error_that_lists_them(tiny, tmp_path):
    folder = shutil.copytree(tiny("llava_next"), tmp_path / "more")
    _rewrite(folder, lambda weights: {**weights, "score.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"1 left over \(score.weight\)"):
        VisionLanguageEncoder(str(folder))


def test_a_missing_language_head_is_none_of_our_business(tiny, tmp_path):
    folder = shutil.copytree(tiny("qwen2_vl"), tmp_path / "headless")
    _rewrite(folder, lambda weights: {k: v for k, v in weights.items() if "lm_head" not in k})
    expected = embed(VisionLanguageEncoder(tiny("qwen2_vl")), SAMPLES)
    assert torch.equal(embed(VisionLanguageEncoder(str(folder)), SAMPLES), expected)


def test_an_unknown_model_type_names_the_known_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert'; the known ones: llava_next, phi3_v, qwen2_5_vl, qwen2_vl"):
        VisionLanguageEncoder(str(tmp_path))


REMOTE_CODE = """
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
class RemoteConfig(LlavaNextConfig):
    model_type = "remote_vlm"
class RemoteModel(LlavaNextForConditionalGeneration):
    config_class = RemoteConfig
"""


def test_remote_code_runs_only_if_the_user_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "remote"
    save_tiny(folder, "llava_next")
    (folder / "remote_code.py").write_text(REMOTE_CODE)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "remote_vlm"
    config["auto_map"] = {
        "AutoConfig": "remote_code.RemoteConfig",
        "AutoModelForImageTextToText": "remote_code.RemoteModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="pass `trust_remote_code=True`"):
        VisionLanguageEncoder(str(folder))
    trusted = VisionLanguageEncoder(str(folder), trust_remote_code=True)
    with pytest.raises(ValueError, match="does not know the vision part of remote_vlm"):
        VisionLanguageEncoder(str(folder), trust_remote_code=True, freeze_vision=True)
    with pytest.raises(ValueError, match="no default LoRA targets"):
        VisionLanguageEncoder(str(folder), trust_remote_code=True, lora={})
    (tmp_path / "own").mkdir()
    own = VisionLanguageEncoder(save_tiny(tmp_path / "own", "llava_next"))
    torch.testing.assert_close(embed(trusted, SAMPLES), embed(own, SAMPLES))


def test_four_bit_loading_without_bitsandbytes_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        VisionLanguageEncoder(tiny("qwen2_vl"), load_in_4bit=True, lora={})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "first"}, "`pooling` must be one of 'last', 'mean', 'eos', got 'first'"),
        ({"positions": "vlm3vec"}, "`positions` must be one of 'model', 'vlm2vec', got 'vlm3vec'"),
        ({"lora": {}, "adapter": "somewhere"}, "pass only one"),
        ({"load_in_4bit": True}, "needs `lora` or `adapter`"),
        ({"dtype": "float16"}, "`dtype` must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"num_crops": 4}, "Qwen2-VL takes no `num_crops`; its images are set by `image_size` and"),
        ({"image_size": "huge"}, "'low' = 336x336"),
        ({"image_size": 0}, "got 0"),
        ({"max_pixels": 100}, "at least 784, one token, got 100"),
    ],
)
def test_options_that_make_no_sense_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        VisionLanguageEncoder(tiny("qwen2_vl"), **options)


def test_sizes_and_counts_are_reported_once(tiny, caplog):
    with caplog.at_level(logging.INFO):
        encoder = VisionLanguageEncoder(tiny("qwen2_vl"), image_size="low", lora={"r": 2})
    lines = [record.message for record in caplog.records if record.message.startswith(tiny("qwen2_vl"))]
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    assert len(lines) == 2
    assert lines[0].endswith("images resized to 336x336: 144 tokens each")
    assert f" {trained:,} of " in lines[1]
