"""The Phi-3.5-vision model with tiny random weights, against its stock parts and closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    Phi3Config,
    Phi3Model,
    PreTrainedTokenizerFast,
)

from fanoise_lightning.encoders.phi3_vision import Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor

WORDS = ["<unk>", "<s>", "<pad>", "a", "cat", "dog", "and", "find"]
TOKENS = 313  # of an image with one crop
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 336,
    "patch_size": 14,
}
SHORT, LONG = [1.1, 1.5, 1.2, 1.4], [2.0, 5.0, 9.0, 20.0]


def config(**changes) -> Phi3VConfig:
    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "original_max_position_embeddings": 800,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "su", "short_factor": SHORT, "long_factor": LONG},
        "sliding_window": 262144,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": 2,
        "img_processor": {"name": "clip_vision_model", "image_dim_out": 16},
        "vision_config": VISION,
    }
    return Phi3VConfig(**{**settings, **changes})


def build(**changes):
    """A model whose every parameter matters: also those that a fresh one has at zero."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1) + 0.05)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def processor() -> Phi3VProcessor:
    tok = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", unk_token="<unk>")
    return Phi3VProcessor(Phi3VImageProcessor(num_crops=1), fast)


def make_image(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


TEXTS = ["a cat", "find <|image_1|> a", "<|image_2|><|image_1|> and a dog"]
IMAGES = [[], [make_image(40, 30, 1)], [make_image(90, 10, 2), make_image(20, 50, 3)]]


@torch.no_grad()
def last_vectors(model, batch) -> torch.Tensor:
    hidden = model.model(**batch).last_hidden_state
    last = (batch["attention_mask"] * torch.arange(hidden.shape[1])).argmax(1)
    return hidden[torch.arange(len(hidden)), last]


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_of_a_mixed_batch_is_the_row_alone(model, processor, side):
    batch = processor(text=TEXTS, images=IMAGES, padding_side=side, num_crops=2)
    model = build(original_max_position_embeddings=4096)  # beyond the switch rows are not independent
    alone = [last_vectors(model, processor(text=t, images=[p], num_crops=2)) for t, p in zip(TEXTS, IMAGES)]
    torch.testing.assert_close(last_vectors(model, batch), torch.cat(alone), atol=1e-5, rtol=0)


def test_sdpa_is_eager(processor):
    batch = processor(text=TEXTS, images=IMAGES, padding_side="left")
    sdpa, eager = build(attn_implementation="sdpa"), build(attn_implementation="eager")
    clip = eager.model.vision_embed_tokens.img_processor["vision_model"]
    assert (sdpa.model.config._attn_implementation, clip.config._attn_implementation) == ("sdpa", "eager")
    torch.testing.assert_close(last_vectors(sdpa, batch), last_vectors(eager, batch), atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [9, 800, 801])
def test_text_alone_is_stock_phi3(model, length):
    settings = model.config.to_dict()
    for name in ("vision_config", "model_type", "img_processor", "embd_layer", "architectures"):
        settings.pop(name)
    stock = Phi3Model(Phi3Config(**settings)).eval()
    stock.load_state_dict({k: v for k, v in model.model.state_dict().items() if "vision" not in k})
    ids = torch.randint(3, len(WORDS), (2, length))
    with torch.no_grad():
        expected = stock(ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(model.model(ids).last_hidden_state, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("length", "factors"), [(800, SHORT), (801, LONG)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_longrope_by_formula_whatever_the_dtype_of_the_weights(model, length, factors, dtype):
    rope = copy.deepcopy(model.model).to(dtype).rotary_emb
    cos, sin = rope(torch.zeros(1, dtype=torch.float32), torch.arange(length)[None])
    frequencies = 1 / (np.array(factors) * 10000.0 ** (np.arange(0, 8, 2) / 8))
    angles = np.tile(np.arange(length)[:, None] * frequencies, 2)
    scale = math.sqrt(1 + math.log(32768 / 800) / math.log(800))
    np.testing.assert_allclose(cos[0].numpy(), np.cos(angles) * scale, atol=2e-4)
    np.testing.assert_allclose(sin[0].numpy(), np.sin(angles) * scale, atol=2e-4)


def test_the_rope_switch_looks_at_the_padded_length(model):
    row = torch.tensor([[1, 3, 4, 6, 3, 5]])
    vectors = []
    for length in (6, 800, 801):
        ids = torch.nn.functional.pad(row, (0, length - 6), value=2)
        mask = torch.nn.functional.pad(torch.ones_like(row), (0, length - 6))
        vectors.append(last_vectors(model, {"input_ids": ids, "attention_mask": mask}))
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-5, rtol=0)
    assert (vectors[1] - vectors[2]).abs().max() > 1e-3


def test_patches_are_what_enters_the_last_layer_of_stock_clip(model):
    embedding = model.model.vision_embed_tokens
    crops = torch.randn(2, 3, 336, 336)
    with torch.no_grad():
        hidden = embedding.img_processor["vision_model"](crops, output_hidden_states=True).hidden_states
        torch.testing.assert_close(embedding.patches(crops), hidden[-2][:, 1:], atol=1e-5, rtol=0)


def test_image_vectors_stand_where_the_numbers_say(model, processor, monkeypatch):
    """Patches are replaced by their addresses and the projection by nothing; loops do the rest."""
    model = copy.deepcopy(model).model
    embedding = model.vision_embed_tokens
    batch = processor(text=TEXTS, images=IMAGES, num_crops=2)
    embedding.img_projection = torch.nn.Identity()
    model.embed_tokens = torch.nn.Embedding(len(WORDS), 64)
    monkeypatch.setattr(embedding, "patches", lambda crops: address(crops))

    def address(crops):  # (crop, patch, channel) as one number each
        crop = crops[:, 0, 0, 0].view(-1, 1, 1) * 1e5
        return crop + torch.arange(576.0).view(1, -1, 1) * 100 + torch.arange(16.0)

    pixels = batch["pixel_values"]
    for i in range(pixels.shape[0]):
        for k in range(pixels.shape[1]):
            pixels[i, k] = i * 10 + k
    vectors = model.embed_inputs(**{key: batch[key] for key in ("input_ids", "pixel_values", "image_sizes")})

    def token(i, k, y, x):
        patches = [(2 * y + dy) * 24 + 2 * x + dx for dy in (0, 1) for dx in (0, 1)]
        return torch.cat(
            [torch.full((16,), (i * 10 + k) * 1e5 + p * 100) + torch.arange(16.0) for p in patches]
        )

    sub, glb = embedding.sub_GN.flatten(), embedding.glb_GN.flatten()
    for row, number, i in [(1, 1, 0), (2, 1, 1), (2, 2, 2)]:
        rows, columns = (batch["image_sizes"][i] // 336).tolist()
        expected = []
        for y in range(rows * 12):
            for x in range(columns * 12):
                expected.append(token(i, 1 + y // 12 * columns + x // 12, y % 12, x % 12))
            expected.append(sub)
        expected.append(glb)
        for y in range(12):
            expected += [token(i, 0, y, x) for x in range(12)] + [sub]
        torch.testing.assert_close(
            vectors[row, batch["input_ids"][row] == -number], torch.stack(expected), atol=0, rtol=0
        )
    words = batch["input_ids"] >= 0
    torch.testing.assert_close(vectors[words], model.embed_tokens(batch["input_ids"][words]), atol=0, rtol=0)


def test_the_projection_has_the_exact_gelu_between_two_linear_maps(model):
    inputs = torch.randn(3, 64)
    first, _, second = model.model.vision_embed_tokens.img_projection
    with torch.no_grad():
        x = first.weight @ inputs.T + first.bias[:, None]
        x = second.weight @ (x * 0.5 * (1 + torch.erf(x / 2**0.5))) + second.bias[:, None]
        found = model.model.vision_embed_tokens.img_projection(inputs)
    torch.testing.assert_close(found, x.T, atol=1e-5, rtol=0)


def test_padding_crops_are_never_looked_at(model, processor):
    batch = processor(text="<|image_1|>", images=make_image(336, 336), num_crops=2)
    before = last_vectors(model, batch)
    batch["pixel_values"][:, 2:] = torch.nan
    assert torch.equal(last_vectors(model, batch), before)


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.model(**batch).last_hidden_state.square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_no_gradient(processor):
    model = build().train()
    batch = processor(text=TEXTS[:2], images=IMAGES[:2])
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable()
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append("language"))
    clip = model.model.vision_embed_tokens.img_processor["vision_model"]
    clip.encoder.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append("image"))
    found = gradients(model, batch)

    assert sorted(calls) == ["image", "image", "language", "language"]  # once more in the backward pass
    unused = ("lm_head", "encoder.layers.2", "post_layernorm")
    assert found.keys() == {n for n, _ in model.named_parameters() if not any(part in n for part in unused)}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-4)


def test_bf16_weights_take_float32_pixels(model, processor):
    batch = processor(text=TEXTS, images=IMAGES)
    assert batch["pixel_values"].dtype == torch.float32
    rounded = last_vectors(copy.deepcopy(model).to(torch.bfloat16), batch)
    assert rounded.dtype == torch.bfloat16
    assert torch.cosine_similarity(rounded.float(), last_vectors(model, batch)).min() > 0.98


def test_no_cache_unless_asked(model):
    ids = torch.tensor([[1, 3, 4]])
    assert model.config.use_cache
    assert model.model(ids).past_key_values is None
    assert model.model(ids, use_cache=True).past_key_values is not None


def test_generation_with_a_cache_is_greedy_search_without(model, processor):
    batch = processor(text="<|image_1|> a", images=make_image(8, 8))
    tokens = model.generate(**batch, max_new_tokens=3, do_sample=False, eos_token_id=None)[0, -3:].tolist()
    for token in tokens:
        with torch.no_grad():
            assert model(**batch).logits[0, -1].argmax().item() == token
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[token]])], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": None}, "tokens of 2 images, but pixel_values holds 0"),
        ({"input_ids": torch.tensor([[1, 3]])}, "tokens of 0 images, but pixel_values holds 2"),
        ({"image_sizes": None}, r"image_sizes has shape None; expected \(2, 2\)"),
        (
            {"image_sizes": torch.tensor([[336, 336], [672, 336]])},
            r"image 1 .*row 1, <\|image_1\|>.* has 313",
        ),
    ],
)
def test_images_and_their_tokens_have_to_fit(model, processor, change, message):
    batch = dict(processor(text=["<|image_1|>"] * 2, images=[make_image(5, 5)] * 2))
    batch.pop("attention_mask")
    with pytest.raises(ValueError, match=message):
        model.model(**{**batch, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"img_processor": {"image_dim_out": 1024}},
            "image_dim_out is 1024 but vision_config.hidden_size is 16",
        ),
        ({"embd_layer": {"hd_transform_order": "glb_sub"}}, "hd_transform_order is 'glb_sub'"),
        ({"img_processor": {"layer_idx": -1}}, "layer_idx is -1"),
        ({"vision_config": {**VISION, "image_size": 224}}, "image_size 224"),
    ],
)
def test_other_architectures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AutoModel.from_config(config(**change))
