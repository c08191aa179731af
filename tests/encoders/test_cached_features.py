"""A frozen encoder's features, computed once, with a trainable head."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from torch import Tensor, nn

from fanoise_lightning import (
    CachedFeatures,
    ContrastiveModule,
    Encoder,
    InfoNCE,
    MMEBDataModule,
    OpenClipEncoder,
    PairDataModule,
    Sample,
)
from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.data.images import store as image_store
from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.references import Reference
from fanoise_lightning.sample import DeferredImage


def image(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 30, 3), np.uint8)
    return Image.fromarray(pixels)


SAMPLES = [
    Sample("a red apple"),
    Sample(image=image(0)),
    Sample("<|image_1|> a pear", image(1)),
    Sample("a red apple", image(0)),
    Sample("a pear"),
]


class Counting(OpenClipEncoder):
    """Counts what goes through its towers."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.texts = self.images = 0

    def encode_text(self, input_ids: Tensor) -> Tensor:
        self.texts += len(input_ids)
        return super().encode_text(input_ids)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        self.images += len(pixel_values)
        return super().encode_image(pixel_values)


@pytest.fixture
def towers(tiny_clip: str) -> Counting:
    torch.manual_seed(0)
    return Counting(tiny_clip).eval()


def quiet(*callbacks: Any, **options: Any) -> Trainer:
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    return Trainer(
        callbacks=list(callbacks),
        accelerator="cpu",
        num_sanity_val_steps=0,
        **dict.fromkeys(off, False),
        **options,
    )


def without_heads(encoder: CachedFeatures) -> CachedFeatures:
    for kind in encoder.kinds:
        setattr(encoder, f"{kind}_head", nn.Identity())
    return encoder


def embed(encoder: Any, samples: list[Sample]) -> Tensor:
    with torch.no_grad():
        return encoder(**encoder.collate(samples))


def test_without_heads_the_embeddings_are_the_encoders_when_computed_and_when_read(towers, tmp_path):
    expected = embed(towers, SAMPLES)
    encoder = without_heads(CachedFeatures(towers, tmp_path))
    towers.texts = towers.images = 0
    torch.testing.assert_close(embed(encoder, SAMPLES), expected)
    assert (towers.texts, towers.images) == (2, 2)  # each once
    torch.testing.assert_close(embed(encoder, SAMPLES), expected)
    torch.testing.assert_close(embed(encoder, [*reversed(SAMPLES), Sample("new")])[:5], expected.flip(0))
    assert (towers.texts, towers.images) == (3, 2)


def test_another_process_reads_what_one_computed(towers, tmp_path):
    expected = embed(without_heads(CachedFeatures(towers, tmp_path)), SAMPLES)
    towers.texts = towers.images = 0
    torch.testing.assert_close(embed(without_heads(CachedFeatures(towers, tmp_path)), SAMPLES), expected)
    assert (towers.texts, towers.images) == (0, 0)


def test_an_encoder_with_other_weights_or_another_preprocessing_has_other_features(tiny_clip, tmp_path):
    torch.manual_seed(0)
    one = CachedFeatures(OpenClipEncoder(tiny_clip), tmp_path)
    torch.manual_seed(0)
    twin = CachedFeatures(OpenClipEncoder(tiny_clip), tmp_path)
    torch.manual_seed(0)
    brighter = CachedFeatures(OpenClipEncoder(tiny_clip, image_mean=(0.1, 0.1, 0.1)), tmp_path)
    other = CachedFeatures(OpenClipEncoder(tiny_clip), tmp_path)
    assert one.fingerprint() == twin.fingerprint()
    assert len({one.fingerprint(), brighter.fingerprint(), other.fingerprint()}) == 3
    embed(one, SAMPLES)
    before = one.collate.stores["text"].folder
    one.load_state_dict(other.state_dict())
    assert one.collate.stores["text"].folder != before


def test_an_image_is_not_opened_when_its_features_are_there(towers, tmp_path):
    def broken() -> Image.Image:
        raise AssertionError("opened")

    encoder = CachedFeatures(towers, tmp_path)
    known = Sample(image=DeferredImage("ab" * 16, partial(image, 5)))
    first = embed(encoder, [known])
    again = embed(encoder, [Sample(image=DeferredImage("ab" * 16, broken))])
    assert torch.equal(first, again)
    with pytest.raises(AssertionError, match="opened"):
        embed(encoder, [Sample(image=DeferredImage("cd" * 16, broken))])


class Plain(Encoder):
    """One network for whole samples, as a vision-language model is."""

    embedding_dim = 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.rows = nn.Linear(2, 8), 0

    @staticmethod
    def collate(samples: list[Sample]) -> dict[str, Tensor]:
        sizes = [float(sum(np.asarray(i).mean() / 255 for i in sample.images)) for sample in samples]
        return {"x": torch.tensor([[len(s.text) / 10, size] for s, size in zip(samples, sizes)])}

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.layer(x)


def test_any_other_encoder_has_one_feature_a_sample(tmp_path):
    plain = Plain()
    expected = nn.functional.normalize(embed(plain, SAMPLES), dim=1)
    encoder = without_heads(CachedFeatures(plain, tmp_path))
    plain.rows = 0
    for _ in range(2):
        torch.testing.assert_close(embed(encoder, SAMPLES), expected)
    assert plain.rows == 5
    assert encoder.kinds == ("sample",)


class Choosing(Plain):
    """Makes other features of the same weights and inputs."""

    def __init__(self, pooling: Any = "mean") -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.pooling in MEANS else x.square())


MEANS = ("mean", ["mean", 1], ("mean", None), {"kind": ["mean"]}, torch.float32)
OTHERS = ("last", ["last", 1], ("last", None), {"kind": ["last"]}, torch.bfloat16)


@pytest.mark.parametrize(("mean", "other"), zip(MEANS, OTHERS, strict=True))
def test_an_encoder_with_other_options_has_other_features(tmp_path, mean, other):
    for pooling in (mean, other, mean):
        encoder = without_heads(CachedFeatures(Choosing(pooling), tmp_path))
        expected = nn.functional.normalize(embed(Choosing(pooling), SAMPLES), dim=1)
        torch.testing.assert_close(embed(encoder, SAMPLES), expected)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_features_of_an_image_that_has_changed_are_not_kept_under_the_old_key(towers, tmp_path):
    image(0).save(tmp_path / "a.png")
    store = ImageStore(ImageRoot(tmp_path), deferred=True)
    sample = store.sample(Reference("", "a.png"))
    assert sample.images[0].tobytes() == image(0).tobytes()
    image(1).save(tmp_path / "a.png")
    encoder = CachedFeatures(towers, tmp_path / "features")
    with pytest.raises(ImageError, match=r"`a.png`.*has changed since it was first read"):
        embed(encoder, [sample])
    changed = ImageStore(ImageRoot(tmp_path), deferred=True).sample(Reference("", "a.png"))
    assert changed.image_keys != sample.image_keys
    torch.testing.assert_close(embed(encoder, [changed]), embed(encoder, [Sample(image=image(1))]))


@pytest.mark.parametrize("chunk_size", [None, 8])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_fit_opens_and_encodes_each_thing_once_and_its_checkpoint_reloads(
    towers, tmp_path, monkeypatch, num_workers, chunk_size
):
    opened: list[str] = []
    decode = image_store.decode
    monkeypatch.setattr(
        image_store, "decode", lambda data, name, size: opened.append(name) or decode(data, name, size)
    )

    def fit(max_epochs: int = 1) -> tuple[ContrastiveModule, Any]:
        seed_everything(0, verbose=False)
        encoder = CachedFeatures(towers, tmp_path / "features", head="residual")
        module = ContrastiveModule(
            encoder, InfoNCE(0.1), optimizer=partial(torch.optim.AdamW, lr=1e-2), chunk_size=chunk_size
        )
        data = MMEBDataModule(
            "emoji",
            train_subsets=["keywords", "caption"],
            eval_subsets=["keywords"],
            num_samples=32,
            batch_size=16,
            num_workers=num_workers,
        )
        noise = FANoise(0.3, target="encoder.image_head", where="input", relative=True)
        trainer = quiet(noise, max_epochs=max_epochs)
        trainer.fit(module, data)
        return module, trainer

    fit()
    images = towers.images
    opened.clear()
    towers.texts = towers.images = 0
    before = {name: value.clone() for name, value in towers.state_dict().items()}
    module, trainer = fit(max_epochs=3)
    assert (towers.texts, towers.images, opened) == (0, 0, [])
    assert images > 100
    assert all(torch.equal(value, before[name]) for name, value in towers.state_dict().items())
    assert module.scoreboard.overall.precision > 0
    path = tmp_path / "saved.ckpt"
    trainer.save_checkpoint(path)
    loaded = ContrastiveModule.load_from_checkpoint(
        path, encoder=CachedFeatures(towers, tmp_path / "f", "residual")
    )
    torch.testing.assert_close(loaded.encode(SAMPLES), module.encode(SAMPLES))


def test_broken_and_missing_images_are_skipped_as_without_a_cache(tiny_clip, tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = []
    for number in range(24):
        image(number).save(folder / f"{number}.png")
        row = {
            "qry": f"thing {number}",
            "qry_image_path": "",
            "pos_text": "",
            "pos_image_path": f"{number}.png",
        }
        rows.append(json.dumps(row))
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    for number in (3, 7, 11, 15):
        (folder / f"{number}.png").write_bytes((folder / f"{number}.png").read_bytes()[:60])
    (folder / "5.png").unlink()
    said = []
    for cached in (False, True, True):
        torch.manual_seed(0)
        plain = OpenClipEncoder(tiny_clip)
        encoder = CachedFeatures(plain, tmp_path / "f") if cached else plain
        data = PairDataModule(folder / "pairs.jsonl", batch_size=6, num_workers=0, max_skipped=0.5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quiet(max_epochs=2).fit(ContrastiveModule(encoder), data)
        said.append(sorted({str(w.message) for w in caught if "skipped" in str(w.message)}))
    counts = [[line for line in lines if line.startswith("epoch")] for lines in said]
    assert counts[0] == counts[1] == counts[2]
    assert len(counts[0]) >= 2
    assert all(any("an image cannot be read and is skipped" in line for line in lines) for lines in said)


def test_a_checkpoint_alone_is_enough(tiny_clip, tmp_path):
    encoder = CachedFeatures(OpenClipEncoder(tiny_clip), tmp_path / "f", "mlp", dim=12, hidden=5)
    module = ContrastiveModule(encoder)
    trainer = quiet(max_steps=1)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    loaded = ContrastiveModule.load_from_checkpoint(tmp_path / "saved.ckpt")
    torch.testing.assert_close(loaded.encode(SAMPLES), module.encode(SAMPLES))


def test_features_that_are_not_finite_are_not_kept(towers, tmp_path):
    encoder = CachedFeatures(towers, tmp_path)
    with torch.no_grad():
        towers.clip.visual.proj.fill_(torch.nan)
    assert not embed(encoder, SAMPLES[1:2]).isfinite().all()
    assert len(encoder.collate.stores["image"]) == 0


def test_the_encoder_is_frozen_and_stays_in_eval_mode(towers, tmp_path):
    encoder = CachedFeatures(towers, tmp_path, "mlp", dim=12, hidden=5, dropout=0.2).train()
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"text_head", "image_head"}
    assert not towers.training
    assert encoder.image_head.training
    assert embed(encoder, SAMPLES).shape == (5, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "deep"}, r"`head` must be one of 'linear', 'mlp', 'residual', got 'deep'"),
        ({"head": "residual", "dim": 5}, r"a residual head keeps the width of its features, 24"),
        ({"dim": 0}, r"`dim` must be at least 1"),
        ({"hidden": 0}, r"`hidden` must be at least 1"),
        ({"dropout": 1.0}, r"`dropout` must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_is_refused(towers, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        CachedFeatures(towers, tmp_path, **options)


def test_what_the_encoder_refuses_is_refused(towers, tmp_path):
    encoder = CachedFeatures(towers, tmp_path)
    with pytest.raises(ValueError, match="takes one image per sample"):
        encoder.collate([Sample("two", [image(0), image(1)])])
    with pytest.raises(ValueError, match=r"has a placeholder <\|image_1\|>, but the sample has no image"):
        encoder.collate([Sample("<|image_1|> what?")])
    with pytest.raises(ValueError, match="no samples"):
        encoder.collate([])
    assert not Path(tmp_path / "image").exists()
