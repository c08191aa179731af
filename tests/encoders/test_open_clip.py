from __future__ import annotations

import copy
import json
import pickle
from functools import partial

import open_clip
import pytest
import torch
from lightning.pytorch import Trainer
from tiny_models import make_image, tiny_tokenizer
from torch import nn
from torch.nn import functional as F

from fanoise_lightning import ContrastiveModule, InfoNCE, OpenClipEncoder, Sample
from fanoise_lightning.encoders.linear_attention import LinearAttention

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TIMM = {"image_size": 224, "timm_model_pretrained": False}
POOLED = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 8, "output_tokens": True}
SIGLIP_TEXT = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
CONFIGS = {
    "clip": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "siglip": {
        "embed_dim": 192,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            **TIMM,
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {**TEXT, **SIGLIP_TEXT, "vocab_size": 128, "tokenizer_kwargs": {"clean": "canonicalize"}},
    },
    "coca": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {**VISION, **POOLED},
        "text_cfg": {**TEXT, "context_length": 15, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "context_length": 15},
    },
    "eva": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {**TIMM, "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token"},
        "text_cfg": TEXT,
    },
}
SAMPLES = [
    Sample(text="a red apple"),
    Sample(image=make_image(36, 40, 0)),
    Sample(text="the same with dark skin", image=make_image(36, 40, 1)),
    Sample(text="a red apple", image=make_image(36, 40, 2)),
    Sample(text="a dog"),
]
families = pytest.mark.parametrize("family", CONFIGS)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    tiny_tokenizer(padding_side="right").save_pretrained(folder / "tokenizer")
    for family, content in CONFIGS.items():
        if family == "siglip":
            content = {
                **content,
                "text_cfg": {**content["text_cfg"], "hf_tokenizer_name": str(folder / "tokenizer")},
            }
        (folder / f"tiny-{family}.json").write_text(json.dumps(content))
    return lambda family: str(folder / f"tiny-{family}.json")


def build(model: str, **options) -> OpenClipEncoder:
    torch.manual_seed(0)
    return OpenClipEncoder(model, **options)


def randomise(encoder: OpenClipEncoder, std: float) -> None:
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=std)


def embed(encoder: OpenClipEncoder, samples: list[Sample]) -> torch.Tensor:
    with torch.no_grad():
        return encoder(**encoder.collate(samples))


@pytest.fixture(scope="module")
def encoders(config):
    made: dict[str, OpenClipEncoder] = {}

    def encoder(family: str) -> OpenClipEncoder:
        if family not in made:
            made[family] = build(config(family)).eval()
        return made[family]

    return encoder


@pytest.fixture(scope="module")
def encoder(encoders) -> OpenClipEncoder:
    return encoders("clip")


@families
def test_towers_are_those_of_open_clip(encoders, family):
    encoder = encoders(family)
    model, transform, tokenizer = encoder.clip, encoder.collate.preprocess, encoder.collate.tokenizer
    out = embed(encoder, SAMPLES)
    assert out.shape == (5, encoder.embedding_dim)
    with torch.no_grad():
        for row, sample in zip(out, SAMPLES):
            parts = []
            if sample.text:
                parts.append(model.encode_text(tokenizer([sample.text]), normalize=True))
            if sample.image is not None:
                parts.append(model.encode_image(transform(sample.image)[None], normalize=True))
            assert torch.allclose(row, sum(parts)[0], atol=1e-5)


@families
def test_each_row_of_a_mixed_batch_equals_the_row_alone(encoders, family):
    encoder = encoders(family)
    alone = torch.cat([embed(encoder, [sample]) for sample in SAMPLES])
    torch.testing.assert_close(embed(encoder, SAMPLES), alone, atol=1e-5, rtol=0)


@families
def test_every_trainable_weight_gets_a_gradient(config, encoders, family):
    for encoder in (copy.deepcopy(encoders(family)), build(config(family), lora={"dropout": 0.0})):
        randomise(encoder, 0.02)
        out = encoder.train()(**encoder.collate(SAMPLES))
        (out @ torch.randn(out.shape[1])).sum().backward()
        trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
        assert [name for name, p in trained.items() if p.grad is None] == []
        adapter = {name: p for name, p in trained.items() if "lora_" in name}
        assert not adapter or adapter.keys() == trained.keys()
        assert [name for name, p in adapter.items() if not p.grad.any()] == []  # LoRA does nothing there
    blocks = {name.split(".lora_")[0].rpartition(".")[2] for name in adapter}
    assert {"in_proj", "out_proj", "c_fc", "c_proj"} <= blocks
    assert ({"qkv", "proj", "fc1", "fc2"} <= blocks) is (family in ("siglip", "eva"))


@families
def test_a_fresh_adapter_changes_nothing_and_its_fit_lowers_the_loss(config, encoders, family, tmp_path):
    encoder = build(config(family), lora={"dropout": 0.0}, gradient_checkpointing=True)
    start = embed(encoders(family), SAMPLES)
    torch.testing.assert_close(embed(encoder.eval(), SAMPLES), start, atol=1e-5, rtol=0)

    module = ContrastiveModule(encoder, InfoNCE(0.1), optimizer=partial(torch.optim.AdamW, lr=1e-3))
    module.train()
    query = encoder.collate([Sample(image=make_image(36, 40, i)) for i in range(3)])
    target = encoder.collate([Sample(text=f"number {i}") for i in range(3)])
    optimizer = module.configure_optimizers()
    losses = []
    for _ in range(8):
        loss = module.loss(module(query), module(target))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = ContrastiveModule.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    trained = embed(encoder.eval(), SAMPLES)
    torch.testing.assert_close(embed(again.encoder, SAMPLES), trained, atol=1e-5, rtol=0)
    assert (trained - start).abs().max() > 1e-3


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [None, 2, 3])
def test_linear_attention_is_the_stock_attention(batch_first, masked):
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(12, 3, batch_first=batch_first)
    nn.init.normal_(stock.in_proj_bias)
    x = torch.randn(2, 5, 12) if batch_first else torch.randn(5, 2, 12)
    mask = None if masked is None else torch.randn((5, 5) if masked == 2 else (6, 5, 5))
    expected = stock(x, x, x, need_weights=False, attn_mask=mask)[0]
    ours = LinearAttention(copy.deepcopy(stock))
    torch.testing.assert_close(ours(x, x, x, attn_mask=mask)[0], expected, atol=1e-6, rtol=0)


def test_an_adapter_is_worth_its_merged_weights(config):
    adapted, plain = build(config("clip"), lora={}).eval(), build(config("clip")).eval()
    weights = plain.clip.state_dict()
    for name, module in adapted.clip.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        nn.init.normal_(module.lora_B["default"].weight, std=0.02)
        delta = module.lora_B["default"].weight @ module.lora_A["default"].weight * (64 / 8)
        weights[name.replace("in_proj", "in_proj_") + ("" if "in_proj" in name else ".") + "weight"] += delta
    plain.clip.load_state_dict(weights)
    torch.testing.assert_close(embed(adapted, SAMPLES), embed(plain, SAMPLES), atol=1e-5, rtol=0)


def test_an_adapter_trains_in_train_mode_and_the_rest_stays_in_eval_mode(config):
    encoder = build(config("coca"), lora={"dropout": 0.5, "dora": True})
    randomise(encoder, 0.1)
    batch = encoder.collate(SAMPLES)
    assert (encoder(**batch) - encoder(**batch)).abs().max() > 1e-3  # dropout is on
    assert not encoder.clip.text_decoder.training
    assert not any(p.requires_grad for p in encoder.clip.text_decoder.parameters())
    encoder.eval()
    assert torch.equal(encoder(**batch), encoder(**batch))


def test_the_ends_of_a_strip_are_cut_before_it_is_scaled(encoder):
    strip = make_image(200, 4)
    expected = encoder.collate.preprocess(strip)
    batch = encoder.collate([Sample(image=strip)])
    assert batch["pixels"].dtype == torch.uint8
    assert torch.equal(encoder.collate.to_floats(batch)["pixel_values"][0], expected)
    assert encoder.collate.prepare(make_image(1, 5000)).size == (1, 16)  # whole: 32 x 160,000 pixels
    for size in [(1, 1), (1, 5000), (5000, 1)]:
        assert embed(encoder, [Sample(image=make_image(*size))]).isfinite().all()


@pytest.mark.parametrize("only", [[0, 4], [1]])
def test_batches_of_one_modality_run(encoder, only):
    batch = encoder.collate([SAMPLES[i] for i in only])
    assert encoder(**batch).shape == (len(only), 24)


def test_equal_texts_are_tokenised_once(encoder):
    assert encoder.collate([Sample(text="a cat")] * 5 + [Sample(text="a dog")])["input_ids"].shape == (2, 16)


def test_the_collator_travels_to_workers_without_weights(encoder):
    data = pickle.dumps(encoder.collate)
    assert len(data) < 10_000_000  # the tokenizer's vocabulary; the weights stay behind
    batch, again = encoder.collate(SAMPLES), pickle.loads(data)(SAMPLES)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert not any(isinstance(v, torch.nn.Module) for v in vars(encoder.collate).values())


def test_a_fit_lowers_the_loss_through_both_towers(tiny_clip):
    torch.manual_seed(0)
    encoder = OpenClipEncoder(tiny_clip)
    query = encoder.collate([Sample(image=make_image(36, 40, i)) for i in range(6)])
    target = encoder.collate([Sample(text=f"number {i}") for i in range(6)])
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        logits = 10 * F.normalize(encoder(**query), dim=1) @ F.normalize(encoder(**target), dim=1).T
        loss = F.cross_entropy(logits, torch.arange(6))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    unused = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


def test_gradient_checkpointing_gives_the_same_gradients(tiny_clip):
    gradients = []
    for flag in (False, True):
        torch.manual_seed(0)
        encoder = OpenClipEncoder(tiny_clip, gradient_checkpointing=flag)
        encoder(**encoder.collate(SAMPLES)).sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_pretrained_weights_are_read_from_a_file(tiny_clip, encoder, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(encoder.clip.state_dict(), path)
    again = OpenClipEncoder(tiny_clip, pretrained=str(path)).eval()
    batch = encoder.collate(SAMPLES)
    assert torch.equal(encoder(**batch), again(**batch))


def test_the_encoder_of_the_embedded_benchmark_comes_with_the_package():
    encoder = OpenClipEncoder("emoji-resnet")
    assert encoder(**encoder.collate(SAMPLES)).shape == (5, encoder.embedding_dim)


def test_an_unknown_model_is_answered_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"no model 'ViT-B-33'; the nearest: .*ViT-B-32"):
        OpenClipEncoder("ViT-B-33")


def test_a_missing_or_wrong_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        OpenClipEncoder(str(tmp_path / "nothing.json"))
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"embed_dim": 8}')
    with pytest.raises(ValueError, match=r"wrong\.json.*vision_cfg"):
        OpenClipEncoder(str(wrong))


def test_an_unknown_pretrained_tag_is_refused(tiny_clip):
    with pytest.raises(ValueError, match=r"laion7b.* nor one of the tags of tiny-two-tower: it has none"):
        OpenClipEncoder(tiny_clip, pretrained="laion7b")


def test_nothing_to_collate_is_an_error(encoder):
    with pytest.raises(ValueError, match="no samples"):
        encoder.collate([])


def test_a_sample_without_text_and_image_is_an_error():
    with pytest.raises(ValueError, match="text, an image or both"):
        Sample()


def test_stock_models_stay_listed():
    assert {"ViT-B-32", "emoji-resnet"} <= set(open_clip.list_models())
