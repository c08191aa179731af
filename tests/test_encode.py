"""ContrastiveModule.encode: what it takes, what it returns, and that the way there changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image
from torch.nn.functional import normalize

from fanoise_lightning import ContrastiveModule, OpenClipEncoder, Sample

IMAGE = Image.effect_noise((8, 8), 40).convert("RGB")
MIXED = ["a red apple", IMAGE, "red", Sample("a green apple", IMAGE), "a long text about apples", IMAGE, "b"]


@pytest.fixture(scope="module")
def module(tiny_clip: str) -> ContrastiveModule:
    seed_everything(0, verbose=False)
    return ContrastiveModule(OpenClipEncoder(tiny_clip))


def one_by_one(module: ContrastiveModule, samples: list) -> torch.Tensor:
    """The forward pass of each sample by itself."""
    samples = [
        s if isinstance(s, Sample) else Sample(s) if isinstance(s, str) else Sample(image=s) for s in samples
    ]
    with torch.inference_mode():
        return torch.cat([module.encoder.eval()(**module.collate([sample])) for sample in samples])


def test_encode_gives_unit_vectors_in_eval_mode_and_leaves_the_modes_as_they_were() -> None:
    seed_everything(0, verbose=False)
    module = ContrastiveModule(OpenClipEncoder("emoji-resnet"))  # has batch norm: a row depends on its batch
    module.train()
    module.loss.eval()
    samples = [Sample(image=Image.effect_noise((48, 48), 20 * i).convert("RGB")) for i in (1, 2, 3)]
    together, alone = module.encode(samples), torch.cat([module.encode([sample]) for sample in samples])
    in_parts = module.encode(samples, batch_size=2)
    assert together.shape == (3, module.encoder.embedding_dim)
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together, in_parts, atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(3))
    assert module.encoder.training
    assert not module.loss.training
    assert module.encode([]).shape == (0, module.encoder.embedding_dim)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 2, "num_workers": 2}], ids=str)
def test_the_rows_are_in_the_order_of_the_samples(module: ContrastiveModule, options: dict) -> None:
    expected = normalize(one_by_one(module, MIXED), dim=1)
    assert torch.allclose(module.encode(MIXED, **options), expected, atol=1e-6)


def test_long_texts_go_together_after_the_images(module: ContrastiveModule, monkeypatch) -> None:
    seen: list[list[str]] = []
    collate = module.encoder.collate

    def recording(samples: list[Sample]) -> dict[str, torch.Tensor]:
        seen.append([sample.text for sample in samples])
        return collate(samples)

    monkeypatch.setattr(module.encoder, "collate", recording)
    module.encode(MIXED, batch_size=3)
    assert seen == [
        ["a green apple", "", ""],
        ["a long text about apples", "a red apple", "red"],
        ["b"],
    ]


def test_it_takes_texts_and_images_as_they_are(module: ContrastiveModule, tmp_path: Path) -> None:
    image = Image.effect_noise((48, 48), 40).convert("RGB")
    image.save(tmp_path / "noise.png")
    path = tmp_path / "noise.png"
    given = [
        *("a red apple", {"text": "a red apple"}),
        *(image, np.asarray(image), path, {"image": image}, {"image": str(path), "text": ""}),
        {"image": np.asarray(image)},
        *(Sample("red", image), {"text": "red", "image": path}, {"text": "red", "image": np.asarray(image)}),
    ]
    found = module.encode(given)
    for first, rows in ((0, range(2)), (2, range(2, 8)), (8, range(8, 11))):
        assert all(torch.allclose(found[first], found[row], atol=1e-6) for row in rows)
    assert len({tuple(found[row].tolist()) for row in (0, 2, 8)}) == 3
    for single in given:  # one alone is a vector
        vector = module.encode(single)
        assert vector.shape == (module.encoder.embedding_dim,)
        assert torch.equal(vector, module.encode([single])[0])


def test_the_path_of_an_image_as_a_string_is_a_text(module: ContrastiveModule, tmp_path: Path) -> None:
    path = str(tmp_path / "absent.png")
    assert torch.equal(module.encode([path]), module.encode([Sample(text=path)]))


def test_it_takes_any_iterable(module: ContrastiveModule) -> None:
    texts = ["red", "green", "blue"]
    expected = module.encode(texts, batch_size=2)
    for given in (tuple(texts), iter(texts), (text for text in texts), np.array(texts)):
        assert torch.equal(module.encode(given, batch_size=2), expected)
    images = np.stack([np.asarray(IMAGE)] * 3)  # a batch of images
    assert torch.equal(module.encode(images), module.encode([IMAGE] * 3))


def test_numpy_raw_and_truncated_embeddings(module: ContrastiveModule) -> None:
    raw = one_by_one(module, MIXED)
    assert torch.allclose(module.encode(MIXED, normalize=False), raw, atol=1e-5)
    cut = module.encode(MIXED, truncate_dim=5, convert_to_numpy=True)
    assert isinstance(cut, np.ndarray)
    assert cut.dtype == np.float32
    assert np.allclose(cut, normalize(raw[:, :5], dim=1).numpy(), atol=1e-6)
    assert module.encode("red", truncate_dim=5, convert_to_numpy=True).shape == (5,)


def test_the_progress_bar_counts_samples(module: ContrastiveModule, capsys) -> None:
    module.encode(MIXED, batch_size=2)
    assert capsys.readouterr().err == ""
    module.encode(MIXED, batch_size=2, show_progress_bar=True)
    assert "7/7" in capsys.readouterr().err


def test_several_processes_give_what_one_gives(module: ContrastiveModule, tmp_path: Path) -> None:
    samples = MIXED * 5
    found = module.encode(samples, batch_size=2, device=["cpu", "cpu"])
    assert torch.allclose(found, module.encode(samples), atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"item 4 of `encode`.*absent\.png"):
        module.encode([*"abcd", tmp_path / "absent.png", *"efgh"], batch_size=1, device=["cpu", "cpu"])


def test_pictures_are_embedded_in_the_dtype_of_the_module(tiny_clip: str) -> None:
    module = ContrastiveModule(OpenClipEncoder(tiny_clip))
    expected = module.encode(MIXED)
    assert torch.allclose(module.bfloat16().encode(MIXED), expected, atol=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
@pytest.mark.parametrize("device", ["cuda", ["cpu", "cuda:0"]], ids=str)
def test_a_device_that_is_not_there_leaves_the_module_as_it_was(
    module: ContrastiveModule, device: Any
) -> None:
    with pytest.raises(ValueError, match=r"`device` 'cuda(:0)?' is not available on this machine"):
        module.encode(["red"], device=device)
    assert module.device == torch.device("cpu")
    assert module.encode(["red"]).shape == (1, 24)


def test_a_single_device_is_where_the_module_goes(module: ContrastiveModule) -> None:
    assert torch.equal(module.encode(["red"], device="cpu"), module.encode(["red"]))
    with pytest.raises(ValueError, match="`device` is an empty list"):
        module.encode(["red"], device=[])


@pytest.mark.parametrize("one", [b"red", {"red"}, torch.ones(2, 2), 7], ids=lambda one: type(one).__name__)
def test_what_is_neither_a_sample_nor_several_is_refused(module: ContrastiveModule, one: object) -> None:
    with pytest.raises(TypeError, match=f"`encode` takes a text, .* of these, got {type(one).__name__}"):
        module.encode(one)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("", ValueError, "needs a text, an image or both"),
        (b"red", TypeError, "is bytes; expected a Pillow image"),
        (None, ValueError, "needs a text"),
        (Path("absent.png"), FileNotFoundError, "absent.png"),
        (["red", IMAGE], TypeError, "is a list with a text in it: pass Sample"),
        (np.zeros((8, 8), np.float32), ValueError, "array of float32"),
        ({"txt": "red"}, TypeError, "a dictionary with the keys 'txt'; expected 'text', 'image' or both"),
        ({"image": None}, ValueError, "needs a text"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_an_item_that_cannot_be_encoded_is_named_by_its_index(
    module: ContrastiveModule, item: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"item 3 of `encode`.*{message}"):
        module.encode(["a", "b", IMAGE, item, "c"], batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
        ({"truncate_dim": 0}, r"`truncate_dim` must be from 1 to the \d+ of the encoder, got 0"),
        ({"truncate_dim": 10_000}, "`truncate_dim` must be from 1 to .* got 10000"),
    ],
)
def test_bad_options_are_named(module: ContrastiveModule, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module.encode(["red"], **options)


def test_embed_is_encode_with_a_warning_for_its_caller(module: ContrastiveModule) -> None:
    with pytest.warns(FutureWarning, match="`embed` is now called `encode`") as caught:
        vectors = module.embed([Sample("a red apple")], batch_size=1)
    assert caught[0].filename == __file__
    assert torch.equal(vectors, module.encode(["a red apple"]))
