"""Images in 8 bits: after `to_floats`, the values of the stock processor, to the last bit."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_two_towers
import torch
import transformers as T
from PIL import Image

from fanoise_lightning import Sample, TwoTowerEncoder
from fanoise_lightning.encoders import eight_bit as module
from fanoise_lightning.encoders.eight_bit import Normalise, eight_bit
from fanoise_lightning.encoders.fingerprint import fingerprint
from fanoise_lightning.pixels import open_image

IN_8_BITS = ("clip", "siglip", "blip", "blip-2")
SIZES = [(1, 1), (1, 40), (40, 1), (32, 32), (31, 33), (64, 32), (7, 100), (333, 217)]


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values.squeeze())


def saved(image: Image.Image, **options: Any) -> Image.Image:
    """The image as its file is opened, with what the format records of it."""
    file = io.BytesIO()
    image.save(file, **options)
    return open_image(file)


def files() -> list[Image.Image]:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (20, 30), np.uint16))
    return [
        saved(noise(60, 44).quantize(17), format="png"),
        saved(noise(60, 44, 4), format="png"),
        saved(noise(60, 44, 1), format="png"),
        saved(deep, format="png"),
        saved(noise(60, 44), format="jpeg", exif=exif),
        saved(noise(60, 44).convert("CMYK"), format="jpeg"),
        saved(noise(60, 44), format="jpeg", progressive=True),
        saved(noise(60, 44, 1), format="jpeg"),
    ]


@pytest.mark.parametrize("family", tiny_two_towers.BUILDERS)
def test_every_image_has_the_values_of_the_stock_processor(tiny: Callable[[str], str], family: str) -> None:
    collate = TwoTowerEncoder(tiny(family)).collate
    # SigLIP 2 cuts patches, ALIGN normalises twice
    assert (collate.eight_bit is not None) == (family in IN_8_BITS)
    images = [*(noise(*size) for size in SIZES), *files()]
    found = collate([Sample(image=image) for image in images])
    assert (found["pixel_values"].dtype == torch.uint8) == (family in IN_8_BITS)
    found = collate.to_floats(found)
    stock = T.AutoImageProcessor.from_pretrained(tiny(family))
    expected = stock(images=[collate.prepare(image) for image in images], return_tensors="pt")
    for name, values in expected.items():
        assert torch.equal(found[name], values)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_resize": False},
        {"do_center_crop": False, "size": {"height": 50, "width": 20}},
        {"crop_size": {"height": 300, "width": 300}},  # larger than the image: padded with black
        {"resample": Image.Resampling.BILINEAR},
        {"rescale_factor": 1 / 127, "image_mean": [0.1, 0.2, 0.3]},
        {"image_mean": 0.5, "image_std": 0.25},
    ],
    ids=str,
)
def test_the_options_of_a_processor_count(options: dict[str, Any]) -> None:
    stock = T.CLIPImageProcessor(**options)
    ours, image = eight_bit(stock), noise(300, 260)
    assert ours is not None
    assert torch.equal(
        ours.normalise(ours(image)), stock(images=image, return_tensors="pt")["pixel_values"][0]
    )


def test_a_processor_with_a_step_of_its_own_is_left_alone() -> None:
    class Brighter(T.CLIPImageProcessor):
        def rescale_and_normalize(self, images: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            return super().rescale_and_normalize(images, *args, **options) + 1e-6

    processors = [
        Brighter(),
        T.CLIPImageProcessor(do_normalize=False),
        T.CLIPImageProcessor(do_pad=True, pad_size={"height": 300, "width": 300}),
        T.EfficientNetImageProcessor(rescale_offset=True, include_top=False),
        T.CLIPImageProcessorPil(),
    ]
    assert [eight_bit(processor) for processor in processors] == [None] * len(processors)


@pytest.mark.parametrize("side", [40, 2100], ids=["one block", "several blocks of Pillow's memory"])
def test_an_image_is_resized_where_pillow_keeps_it_or_from_a_copy(side: int) -> None:
    stock = T.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    ours, image = eight_bit(stock), noise(side, side)
    assert ours is not None
    assert torch.equal(
        ours.normalise(ours(image)), stock(images=image, return_tensors="pt")["pixel_values"][0]
    )
    pixels = module._pixels(image)
    image.putpixel((0, 0), (1, 2, 3))
    shares = side == 40 and hasattr(image, "__arrow_c_array__")  # Pillow 11.3
    assert (pixels[0, :3, 0, 0].tolist() == [1, 2, 3]) == shares


def test_normalising_agrees_with_float64() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(2, 3, 1, 256)
    mean, std = (0.48, 0.45, 0.40), (0.26, 0.27, 0.28)
    column = np.array([mean, std])[:, :, None, None]
    expected = (pixels.numpy() / 255 - column[0]) / column[1]
    found = Normalise(mean, std, 255)(pixels)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)
    assert pixels.dtype == torch.uint8


def test_the_network_takes_8_bits_and_floats(tiny: Callable[[str], str]) -> None:
    encoder = TwoTowerEncoder(tiny("clip")).eval()
    batch = encoder.collate([Sample("a", noise(40, 50)), Sample(image=noise(50, 40))])
    with torch.inference_mode():
        expected = encoder(**encoder.collate.to_floats(batch))
    assert torch.equal(encoder(**batch), expected)
    encoder(**batch).sum().backward()


def test_a_function_may_stand_in_for_the_collate(tiny: Callable[[str], str]) -> None:
    encoder = TwoTowerEncoder(tiny("clip")).eval()
    collate, samples = encoder.collate, [Sample(image=noise(40, 50))]
    with torch.inference_mode():
        expected = encoder(**collate(samples))
        encoder.collate = lambda given: collate(given)
        assert torch.equal(encoder(**encoder.collate(samples)), expected)


def test_a_fingerprint_tells_encoders_apart_that_normalise_differently(tiny: Callable[[str], str]) -> None:
    encoder = TwoTowerEncoder(tiny("clip"))
    before = fingerprint(encoder)
    encoder.collate.normalise = Normalise((127.0,) * 3, (127.0,) * 3)
    assert fingerprint(encoder) != before
