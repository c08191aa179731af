from __future__ import annotations

import json
import logging
import pickle
import shutil
from functools import partial

import pytest
import torch
import transformers
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import make_image
from tiny_two_towers import BUILDERS

from fanoise_lightning import ContrastiveModule, InfoNCE, MMEBDataModule, Sample
from fanoise_lightning.encoders.two_tower import TwoTowerEncoder

families = pytest.mark.parametrize("family", BUILDERS)
SAMPLES = [
    Sample("a red apple"),
    Sample(image=make_image(60, 40, 0)),
    Sample("number two", make_image(50, 90, 1)),
    Sample("a red apple", make_image(33, 33, 2)),
    Sample("!"),
    Sample("a dog " * 100),
]


def embed(encoder: TwoTowerEncoder, samples: list[Sample]) -> torch.Tensor:
    with torch.no_grad():
        return encoder(**encoder.collate(samples))


def randomise(encoder: TwoTowerEncoder) -> None:
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)


def own_vectors(family: str, folder: str, text: str, image: Image.Image) -> list[torch.Tensor]:
    """The unit vectors of a text and an image as the stock forward of the retrieval model has them."""
    config = transformers.AutoConfig.from_pretrained(folder)
    classes = {"blip": "BlipForImageTextRetrieval", "blip-2": "Blip2ForImageTextRetrieval"}
    model = getattr(transformers, classes.get(family, config.architectures[0])).from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "right"
    options = {"padding": "max_length", "max_length": 16} if family.startswith("siglip") else {}
    if family == "siglip2":  # its processor's own defaults are those of the large models
        options |= {"max_num_patches": 16, "patch_size": 8}
    inputs = processor(text=[text], images=[image], return_tensors="pt", **options)
    if family.startswith("siglip"):
        inputs.pop("attention_mask", None)
    with torch.no_grad():
        if family == "blip":
            out = model(**inputs, use_itm_head=False)
            text_vector = torch.nn.functional.normalize(model.text_proj(out.question_embeds[:, 0]), dim=1)
            image_vector = torch.nn.functional.normalize(
                model.vision_proj(out.last_hidden_state[:, 0]), dim=1
            )
            assert out.itm_score.item() == pytest.approx((text_vector @ image_vector.T).item(), abs=1e-6)
            return [text_vector, image_vector]
        out = model(**inputs)
        if family == "blip-2":
            mean = out.image_embeds.mean(dim=1)
            return [out.text_embeds, mean / mean.norm(dim=1, keepdim=True)]
        vectors = [out.text_embeds, out.image_embeds]
        return [vector / vector.norm(dim=1, keepdim=True) for vector in vectors]


@families
def test_the_towers_are_those_of_the_models_own_forward(tiny, family):
    encoder, image = TwoTowerEncoder(tiny(family)), make_image(50, 90, 1)
    text_vector, image_vector = own_vectors(family, tiny(family), "number two", image)
    found = embed(encoder, [Sample("number two"), Sample(image=image), Sample("number two", image)])
    expected = torch.cat([text_vector, image_vector, text_vector + image_vector])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.shape[1] == encoder.embedding_dim


@families
def test_each_row_of_a_mixed_batch_is_the_row_alone(tiny, family):
    encoder = TwoTowerEncoder(tiny(family))
    alone = torch.cat([embed(encoder, [sample]) for sample in SAMPLES])
    torch.testing.assert_close(embed(encoder, SAMPLES), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_siglip_texts_have_their_full_length_lower_case_and_no_mask(tiny, family):
    encoder = TwoTowerEncoder(tiny(family))
    batch = encoder.collate([Sample("cat")])
    assert batch["input_ids"].shape == (1, 16)
    assert "attention_mask" not in batch
    assert batch["input_ids"][0, 4:].tolist() == [encoder.collate.tokenizer.pad_token_id] * 12
    assert torch.equal(encoder.collate([Sample("CAT")])["input_ids"], batch["input_ids"])
    right = encoder(**batch)
    short = {**batch, "input_ids": batch["input_ids"][:, :4]}
    masked = {**batch, "attention_mask": (torch.arange(16) < 4).long()[None]}
    for wrong in (short, masked):
        assert (encoder(**wrong) - right).abs().max() > 0.01


@families
def test_a_long_text_is_cut_and_keeps_its_end(tiny, family):
    encoder = TwoTowerEncoder(tiny(family))
    tokens = encoder.collate([Sample("a dog " * 100)])["input_ids"]
    special = encoder.collate.tokenizer("a", return_tensors="pt")["input_ids"][0, -1]
    assert tokens.shape == (1, encoder.collate.context_length)
    assert tokens[0, -1] == special


@families
def test_a_fit_with_lora_lowers_the_loss_and_a_checkpoint_reloads(tiny, family, tmp_path):
    folder = tiny(family)  # which seeds its weights: first, or the adapter's would depend on earlier tests
    seed_everything(1, verbose=False)
    encoder = TwoTowerEncoder(folder, lora={"dropout": 0.0}, gradient_checkpointing=True)
    module = ContrastiveModule(encoder, InfoNCE(0.1), optimizer=partial(torch.optim.AdamW, lr=3e-3))
    data = MMEBDataModule(
        "emoji",
        train_subsets=["renderer"],
        eval_subsets=["renderer"],
        num_samples=32,
        batch_size=16,
        num_workers=0,
    )
    losses: list[float] = []
    module.on_train_batch_end = lambda outputs, batch, batch_idx: losses.append(outputs["loss"].item())
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        max_steps=16,
    )
    trainer.fit(module, data)
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    trainer.limit_val_batches = 2
    trainer.validate(module, data, verbose=False)
    assert [row.name for row in module.scoreboard.subsets] == ["renderer"]
    again = ContrastiveModule.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    module.eval()
    assert again.encoder.lora == {"dropout": 0.0}
    torch.testing.assert_close(embed(again.encoder, SAMPLES), embed(encoder, SAMPLES), atol=1e-5, rtol=0)
    assert (embed(encoder, SAMPLES) - embed(TwoTowerEncoder(tiny(family)), SAMPLES)).abs().max() > 1e-3


@families
def test_every_trainable_weight_gets_a_gradient(tiny, family):
    for lora in (None, {"dropout": 0.0}):
        encoder = TwoTowerEncoder(tiny(family), lora=lora).train()
        randomise(encoder)
        out = encoder(**encoder.collate(SAMPLES))
        (out @ torch.randn(out.shape[1])).sum().backward()
        trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
        assert trained
        assert [name for name, p in trained.items() if p.grad is None] == []
        if lora is not None:
            assert all("lora_" in name for name in trained)
            assert [name for name, p in trained.items() if not p.grad.any()] == []  # LoRA does nothing there


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_lora_where_it_would_do_nothing_is_refused(tiny, family):
    with pytest.raises(ValueError, match=r"nn\.MultiheadAttention.*vision_model\.head\.attention\.out_proj"):
        TwoTowerEncoder(tiny(family), lora={"targets": ["out_proj"]})


@families
def test_what_trains_is_in_train_mode_and_the_rest_in_eval_mode(tiny, family):
    module = ContrastiveModule(TwoTowerEncoder(tiny(family), lora={"dropout": 0.5}))
    randomise(module.encoder)
    batch = module.collate([Sample("a red apple")])
    assert torch.equal(module.encoder(**batch), module.encoder(**batch))  # as it is made: eval mode
    module.train()
    assert (module(batch) - module(batch)).abs().max() > 1e-4  # dropout is on
    for part in module.encoder.modules():
        weights = list(part.parameters())
        if weights:
            assert part.training is any(weight.requires_grad for weight in weights)


def test_frozen_batch_norm_uses_its_stored_statistics(tiny):
    encoder = TwoTowerEncoder(tiny("align"), lora={}).train()
    one, more = [SAMPLES[1]], [SAMPLES[1], Sample(image=make_image(40, 40, 7))]
    torch.testing.assert_close(embed(encoder, one)[0], embed(encoder, more)[0], atol=1e-5, rtol=0)
    full = TwoTowerEncoder(tiny("align")).train()
    assert (embed(full, one)[0] - embed(full, more)[0]).abs().max() > 1e-3


@families
def test_gradient_checkpointing_gives_the_same_gradients(tiny, family):
    gradients = []
    for flag in (False, True):
        encoder = TwoTowerEncoder(tiny(family), gradient_checkpointing=flag).train()
        torch.manual_seed(0)  # for dropout
        out = encoder(**encoder.collate(SAMPLES))
        (out @ torch.linspace(-1, 1, out.shape[1])).sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


@families
def test_bfloat16_weights_give_about_the_same_vectors(tiny, family):
    encoder = TwoTowerEncoder(tiny(family), dtype="bfloat16", lora={})
    weights = encoder.network.named_parameters()
    assert all(p.dtype == (torch.float32 if "lora_" in name else torch.bfloat16) for name, p in weights)
    found = embed(encoder, SAMPLES)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, embed(TwoTowerEncoder(tiny(family)), SAMPLES), atol=0.1, rtol=0)


def test_a_saved_adapter_is_trained_on(tiny, tmp_path):
    encoder = TwoTowerEncoder(tiny("clip"), lora={"r": 2})
    randomise(encoder)
    encoder.network.save_pretrained(tmp_path)
    again = TwoTowerEncoder(tiny("clip"), adapter=str(tmp_path))
    torch.testing.assert_close(embed(again, SAMPLES), embed(encoder, SAMPLES), atol=1e-6, rtol=0)
    assert all(("lora_" in name) == p.requires_grad for name, p in again.named_parameters())
    with pytest.raises(ValueError, match="pass only one"):
        TwoTowerEncoder(tiny("clip"), adapter=str(tmp_path), lora={})


def test_weights_that_do_not_load_are_listed(tiny, tmp_path):
    folder = shutil.copytree(tiny("blip"), tmp_path / "blip")
    weights = load_file(folder / "model.safetensors")
    weights["text_decoder.weight"] = weights.pop("vision_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"missing \(vision_proj\.weight\).*left over \(text_decoder\.weight\)"
    ):
        TwoTowerEncoder(str(folder))


def test_an_unknown_model_type_is_answered_with_the_known_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(
        ValueError, match=r"'bert'; two-tower model types: clip, siglip, siglip2, align, blip"
    ):
        TwoTowerEncoder(str(tmp_path))


def test_an_unknown_dtype_is_refused(tiny):
    with pytest.raises(ValueError, match="`dtype` must be one of 'float32', 'bfloat16', got 'float16'"):
        TwoTowerEncoder(tiny("clip"), dtype="float16")


@families
def test_the_collate_travels_to_workers_without_weights(tiny, family):
    collate = TwoTowerEncoder(tiny(family)).collate
    assert not any(isinstance(value, torch.nn.Module) for value in vars(collate).values())
    batch, copy = collate(SAMPLES), pickle.loads(pickle.dumps(collate))(SAMPLES)
    assert all(isinstance(value, torch.Tensor) for value in batch.values())
    assert all(torch.equal(batch[name], copy[name]) for name in batch)


@families
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_images_of_any_shape_are_embedded(tiny, family, size):
    encoder = TwoTowerEncoder(tiny(family))
    assert encoder.collate.center_crop is (family == "clip")  # the others squash
    found = embed(encoder, [Sample(image=make_image(*size)), SAMPLES[1]])
    assert found.isfinite().all()
    torch.testing.assert_close(found[1], embed(encoder, [SAMPLES[1]])[0], atol=1e-5, rtol=0)


@families
def test_places_of_an_image_are_not_read_as_text(tiny, family):
    encoder, image = TwoTowerEncoder(tiny(family)), SAMPLES[1].image
    found = embed(
        encoder,
        [Sample("<|image_1|> what is it", image), Sample("what is it", image), Sample("<|image_1|>", image)],
    )
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], embed(encoder, [Sample(image=image)])[0], atol=1e-5, rtol=0)
    with pytest.raises(
        ValueError, match=r"what is it' has a placeholder <\|image_1\|>, but the sample has no"
    ):
        encoder.collate([Sample("<|image_1|> what is it")])


@pytest.mark.parametrize(
    "text", ["<|image_1|> or <|image_2|>", "<|image_2|> what", "<|image_1|> <|image_1|>"]
)
def test_places_that_a_tower_cannot_fill_are_refused(tiny, text):
    collate = TwoTowerEncoder(tiny("clip")).collate
    with pytest.raises(
        ValueError, match=r"has <\|image_.*sees the one image of a sample once: keep a single"
    ):
        collate([Sample("fine"), Sample(text, SAMPLES[1].image)])
    assert "pixel_values" not in collate([Sample(" a <|image_x|> b ")])  # no placeholder


def test_what_trains_and_where_texts_are_cut_is_printed(tiny, caplog):
    with caplog.at_level(logging.INFO):
        TwoTowerEncoder(tiny("clip"), lora={"r": 1})
    assert "1,792 of 85,825 parameters are trained; texts are cut after 16 tokens" in caplog.text
