"""Weights from a file, with the images and the activation that they were trained with."""

from __future__ import annotations

import json
import logging

import numpy as np
import open_clip
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from open_clip import pretrained as published
from PIL import Image
from tiny_models import make_image

from fanoise_lightning import ContrastiveModule, OpenClipEncoder, Sample
from fanoise_lightning.encoders.open_clip_tags import settle

OPEN = dict.fromkeys(("image_mean", "image_std", "image_interpolation", "image_resize_mode", "quick_gelu"))
HALF = (0.5, 0.5, 0.5)
SIGLIP = {"mean": HALF, "std": HALF, "interpolation": "bilinear", "resize_mode": "squash"}
CLIP = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
WIDE = make_image(80, 40)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model that open_clip publishes nothing of, and a file of weights for it."""
    folder = tmp_path_factory.mktemp("weights")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (folder / "tiny-tags.json").write_text(json.dumps(config))
    (folder / "tiny-tags-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    torch.manual_seed(0)
    for name in ("tiny-tags", "tiny-tags-quickgelu"):
        open_clip.add_model_config(folder / f"{name}.json")
    torch.save(open_clip.create_model("tiny-tags").state_dict(), folder / "weights.pt")
    return lambda name="tiny-tags": (str(folder / f"{name}.json"), str(folder / "weights.pt"))


@pytest.fixture
def publish(monkeypatch, files):
    """Let open_clip publish tags of the tiny model."""

    def tags(**configs):
        entries = {tag: {"url": "", "hf_hub": "", **config} for tag, config in configs.items()}
        monkeypatch.setitem(published._PRETRAINED, "tiny-tags", entries)

    return tags


def stock_pixels(image: Image.Image, config: dict) -> torch.Tensor:
    """Pillow and NumPy alone."""
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    if config["resize_mode"] == "squash":
        image = image.resize((32, 32), filters[config["interpolation"]])
    else:
        assert image.size == (80, 40)
        image = image.resize((64, 32), filters[config["interpolation"]]).crop((16, 0, 48, 32))
    values = (np.asarray(image) / 255 - np.array(config["mean"])) / np.array(config["std"])
    return torch.tensor(values, dtype=torch.float32).permute(2, 0, 1)[None]


def pixels(encoder: OpenClipEncoder) -> torch.Tensor:
    return encoder.collate.to_floats(encoder.collate([Sample(image=WIDE)]))["pixel_values"]


def test_a_file_takes_what_every_published_architecture_agrees_on(tmp_path):
    path = tmp_path / "weights.pt"
    path.touch()
    seen = {"agree": 0, "differ": 0, "other than OpenAI": 0}
    for model in open_clip.list_models():
        tags = [
            open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)
        ]
        if not tags:
            continue
        quick = open_clip.get_model_config(model).get("quick_gelu", False)
        ways = [
            (t["mean"], t["std"], t["interpolation"], t["resize_mode"], quick or t.get("quick_gelu", False))
            for t in tags
        ]
        if len(set(ways)) == 1:
            assert tuple(settle(model, str(path), OPEN).values()) == ways[0]
            seen["agree"] += 1
            seen["other than OpenAI"] += ways[0][:4] != tuple(CLIP.values())
        else:
            with pytest.raises(ValueError, match=f"published weights of '{model}'"):
                settle(model, str(path), OPEN)
            seen["differ"] += 1
    assert min(seen.values()) > 3
    assert seen["other than OpenAI"] > 45


def test_a_file_is_read_with_the_images_of_its_architecture(files, publish):
    publish(one=SIGLIP, two=SIGLIP)
    encoder = OpenClipEncoder(*files())
    torch.testing.assert_close(pixels(encoder), stock_pixels(WIDE, SIGLIP), atol=1e-5, rtol=0)


def test_a_file_of_an_architecture_without_tags_has_the_images_of_clip(files):
    torch.testing.assert_close(pixels(OpenClipEncoder(*files())), stock_pixels(WIDE, CLIP), atol=1e-5, rtol=0)


def test_the_users_word_goes_first(files, publish):
    publish(one=SIGLIP, two={**SIGLIP, "quick_gelu": True})
    own = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    encoder = OpenClipEncoder(
        *files(), **{f"image_{key}": value for key, value in own.items()}, quick_gelu=False
    )
    torch.testing.assert_close(pixels(encoder), stock_pixels(WIDE, own), atol=1e-5, rtol=0)


def test_what_the_tags_do_not_agree_on_must_be_said(files, publish):
    publish(one=CLIP, two={**CLIP, "mean": HALF, "quick_gelu": True}, three=CLIP)
    message = (
        r"'tiny-tags' were trained in different ways.*weights\.pt.*"
        r"`image_mean` \(image_mean=\(0\.48.*for one, three; or image_mean=\(0\.5, 0\.5, 0\.5\) for two\), "
        r"and `quick_gelu` \(quick_gelu=False for one, three; or quick_gelu=True for two\)$"
    )
    with pytest.raises(ValueError, match=message):
        OpenClipEncoder(*files())
    encoder = OpenClipEncoder(*files(), image_mean=HALF, quick_gelu=True)
    torch.testing.assert_close(pixels(encoder), stock_pixels(WIDE, {**CLIP, "mean": HALF}), atol=1e-5, rtol=0)


def vectors(model: open_clip.CLIP) -> torch.Tensor:
    tokens, pixels = open_clip.get_tokenizer("tiny-tags")(["a cat"]), stock_pixels(WIDE, CLIP)
    with torch.no_grad():
        return torch.cat(
            [model.encode_text(tokens, normalize=True), model.encode_image(pixels, normalize=True)]
        )


@pytest.mark.parametrize("how", ["all tags", "a tag", "the user", "the name"])
def test_weights_with_quick_gelu_run_with_it(files, publish, monkeypatch, how):
    config, path = files("tiny-tags-quickgelu" if how == "the name" else "tiny-tags")
    options = {"quick_gelu": True} if how == "the user" else {}
    if how != "the name":
        publish(one={**CLIP, "quick_gelu": how != "the user"})
    if how == "a tag":
        monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *args, **kwargs: path)
    encoder = OpenClipEncoder(config, pretrained="one" if how == "a tag" else path, **options).eval()
    stock = open_clip.create_model("tiny-tags", pretrained=path, force_quick_gelu=True).eval()
    with torch.no_grad():
        found = encoder(**encoder.collate([Sample("a cat"), Sample(image=WIDE)]))
    torch.testing.assert_close(found, vectors(stock), atol=1e-5, rtol=0)
    without = open_clip.create_model("tiny-tags", pretrained=path).eval()
    assert (found - vectors(without)).abs().max() > 1e-3


def test_quick_gelu_can_be_switched_off(files):
    encoder = OpenClipEncoder(*files("tiny-tags-quickgelu"), quick_gelu=False).eval()
    stock = open_clip.create_model("tiny-tags", pretrained=files()[1]).eval()
    with torch.no_grad():
        found = encoder(**encoder.collate([Sample("a cat"), Sample(image=WIDE)]))
    torch.testing.assert_close(found, vectors(stock), atol=1e-5, rtol=0)


def test_how_images_are_taken_is_printed(files, caplog):
    with caplog.at_level(logging.INFO):
        OpenClipEncoder(*files(), image_mean=HALF, quick_gelu=True)
    expected = r"mean [0.5, 0.5, 0.5], std [0.2686, 0.2613, 0.2758]; with QuickGELU"
    assert f"resized to (32, 32) (bicubic, shortest), {expected}" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_mean": (0.5, 0.5)},
            r"`image_mean` must be three numbers, one per colour, got \(0\.5, 0\.5\)",
        ),
        ({"image_mean": 0.5}, "`image_mean` must be three numbers"),
        ({"image_std": (0.5, 0.0, 0.5)}, "`image_std` must be three positive numbers"),
        (
            {"image_interpolation": "cubic"},
            "`image_interpolation` must be one of 'bicubic', 'bilinear', got 'cubic'",
        ),
        (
            {"image_resize_mode": "crop"},
            "`image_resize_mode` must be one of 'shortest', 'longest', 'squash', got 'crop'",
        ),
    ],
)
def test_an_option_of_no_such_value_is_refused(files, options, message):
    with pytest.raises(ValueError, match=message):
        OpenClipEncoder(*files(), **options)


def test_the_options_travel_in_a_checkpoint(files, tmp_path):
    options = {
        "image_mean": HALF,
        "image_resize_mode": "squash",
        "quick_gelu": True,
        "split_special_tokens": False,
    }
    module = ContrastiveModule(OpenClipEncoder(*files(), **options))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = ContrastiveModule.load_from_checkpoint(tmp_path / "last.ckpt").encoder.eval()
    samples = [Sample("a <end_of_text> cat"), Sample(image=WIDE)]
    with torch.no_grad():
        found, expected = (e(**e.collate(samples)) for e in (again, module.encoder.eval()))
    assert torch.equal(found, expected)
    assert {name: getattr(again, name) for name in options} == options


def test_the_options_are_read_from_a_config(files):
    parser = ArgumentParser()
    parser.add_class_arguments(OpenClipEncoder, "encoder")
    config = {"model": files()[0], "image_mean": [0.5, 0.5, 0.5], "quick_gelu": True}
    encoder = parser.instantiate_classes(parser.parse_object({"encoder": config})).encoder
    torch.testing.assert_close(pixels(encoder), stock_pixels(WIDE, {**CLIP, "mean": HALF}), atol=1e-5, rtol=0)
