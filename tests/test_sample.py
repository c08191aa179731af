from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fanoise_lightning import Sample

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)


@pytest.fixture
def path(tmp_path) -> Path:
    IMAGE.save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def same(image: Image.Image) -> bool:
    return isinstance(image, Image.Image) and np.array_equal(np.asarray(image), PIXELS)


def test_an_image_is_an_image_an_array_or_a_path(path):
    for image in (IMAGE, PIXELS, path, str(path)):
        assert same(Sample(image=image).image)
        assert len(Sample("a text", image).images) == 1


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_images_come_as_a_list_or_a_tuple(path, kind):
    sample = Sample("which one?", kind([IMAGE, PIXELS, path]))
    assert len(sample.images) == 3
    assert all(map(same, sample.images))


def test_a_list_of_one_image_or_of_none_is_what_it_says():
    assert Sample(image=[IMAGE]).images == (IMAGE,)
    assert Sample("a text", []).images == ()
    with pytest.raises(ValueError, match="needs a text, an image or both, got neither"):
        Sample("", [])


def test_grey_and_transparent_arrays_keep_their_values():
    assert Sample(image=PIXELS[..., 0]).image.mode == "L"
    assert Sample(image=np.dstack([PIXELS, PIXELS[..., :1]])).image.mode == "RGBA"


def test_a_file_is_read_at_once_upright_in_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    IMAGE.convert("RGBA").save(tmp_path / "photo.png", exif=exif)
    image = Sample(image=tmp_path / "photo.png").image
    (tmp_path / "photo.png").unlink()
    assert np.array_equal(np.asarray(image), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("value", [None, 3, b"a cat", ["a cat"], Path("a cat")])
def test_another_text_is_refused_by_name(value):
    with pytest.raises(
        TypeError, match=rf"the `text` of a `Sample` is a string, got .*{type(value).__name__}"
    ):
        Sample(value, IMAGE)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (torch.zeros(3, 4, 4), "`image` of a `Sample` is torch.Tensor"),
        (b"\x89PNG", "`image` of a `Sample` is bytes"),
        ({"bytes": b""}, "`image` of a `Sample` is dict"),
        (7, "`image` of a `Sample` is int"),
        ([IMAGE, None], r"`image\[1\]` of a `Sample` is NoneType"),
        ([[IMAGE]], r"`image\[0\]` of a `Sample` is list"),
    ],
)
def test_another_image_is_refused_by_name(value, name):
    with pytest.raises(TypeError, match=f"{name}; expected a Pillow image, an array"):
        Sample("a text", value)


@pytest.mark.parametrize(
    "array",
    [
        PIXELS.astype(float),
        PIXELS.astype(np.uint16),
        PIXELS.transpose(2, 0, 1),
        PIXELS[None],
        PIXELS[:0],
        PIXELS[0, 0],
    ],
)
def test_an_array_of_another_kind_is_refused_with_its_shape(array):
    with pytest.raises(
        ValueError, match=rf"`image\[1\]` is an array of {array.dtype} and of shape \({len(array)}"
    ):
        Sample(image=[PIXELS, array])


@pytest.mark.parametrize("shape", [(3, 20, 30), (4, 20, 30)])
def test_colours_that_come_first_are_refused_with_advice(shape):
    advice = r"its colour dimension comes first: pass `array\.transpose\(1, 2, 0\)`"
    with pytest.raises(ValueError, match=advice):
        Sample(image=np.zeros(shape, np.uint8))


def test_a_file_that_is_missing_or_no_image_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        Sample(image="nowhere.png")
    notes, cut = path.with_name("notes.png"), path.with_name("cut.png")
    notes.write_text("no image")
    cut.write_bytes(path.read_bytes()[:-100])
    for file in (notes, cut):
        with pytest.raises(ValueError, match=rf"`image\[1\]` of a `Sample`, the file '.*{file.stem}\.png': "):
            Sample(image=[path, file])


def test_a_sample_is_copied_and_pickled(path):
    sample = Sample("a text", [path, PIXELS])
    for again in (
        copy.deepcopy(sample),
        pickle.loads(pickle.dumps(sample)),
        dataclasses.replace(sample, text="b"),
    ):
        assert all(map(same, again.images))
