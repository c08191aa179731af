"""Images in 8 bits: after `to_floats`, the values of the stock processor, to the last bit."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_two_towers
import torch
import transformers as T
from lightning.pytorch.plugins import HalfPrecision
from PIL import Image
from torchvision.transforms import Compose, Normalize, RandomErasing, RandomHorizontalFlip, ToTensor

from fanoise_lightning import OpenClipEncoder, Sample, TwoTowerEncoder
from fanoise_lightning.encoders import eight_bit as module
from fanoise_lightning.encoders.eight_bit import EightBit, to_floats
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
    images = [*(noise(*size) for size in SIZES), *files()]
    found = collate([Sample(image=image) for image in images])
    # SigLIP 2 cuts patches, ALIGN normalises twice
    assert (found.get("pixels", found["kind"][:0]).numel() > 0) == (family in IN_8_BITS)
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
    assert_equal(T.CLIPImageProcessor(**options), noise(300, 260))


def assert_equal(processor: Any, image: Image.Image) -> None:
    inputs = EightBit(processor)(processor, [image])
    assert inputs is not None
    assert inputs["pixels"].dtype == torch.uint8
    expected = processor(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(to_floats(inputs)["pixel_values"], expected)


def test_a_processor_with_a_step_of_its_own_is_left_alone() -> None:
    class Brighter(T.CLIPImageProcessor):
        def rescale_and_normalize(self, images: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            return super().rescale_and_normalize(images, *args, **options) + 1e-6

    class SometimesFlipped(T.CLIPImageProcessor):
        pass  # with none of the images of the check

    processors = [
        Brighter(),
        SometimesFlipped(),
        # of strips it would take other pixels, of the images of the check the same
        T.SiglipImageProcessor(size={"height": 189, "width": 51}, resample=Image.Resampling.NEAREST),
        T.CLIPImageProcessor(do_normalize=False),
        T.CLIPImageProcessor(do_pad=True, pad_size={"height": 300, "width": 300}),
        T.EfficientNetImageProcessor(rescale_offset=True, include_top=False),
        T.CLIPImageProcessorPil(),
    ]
    for processor in processors:
        assert EightBit(processor)(processor, [noise(40, 40)]) is None


@pytest.mark.parametrize(
    "options",
    [
        {"image_mean": [0.9, 0.1, 0.2]},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 0.01},
        {"resample": Image.Resampling.BILINEAR},
        {"crop_size": {"height": 32, "width": 20}},
        {"size": {"height": 40, "width": 50}},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["changed", "replaced", "by Pillow"])
def test_a_processor_may_be_changed_or_replaced(
    tiny: Callable[[str], str], options: dict[str, Any], kind: str
) -> None:
    collate, image = TwoTowerEncoder(tiny("clip")).collate, noise(70, 50)
    collate([Sample(image=image)])
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **options}
    stock = (T.CLIPImageProcessorPil if kind == "by Pillow" else T.CLIPImageProcessor)(**settings)
    if kind == "changed":
        for name, value in options.items():
            setattr(collate.image_processor, name, value)
    else:
        collate.image_processor = stock
    found = to_floats(collate([Sample(image=image)]))["pixel_values"]
    assert torch.equal(found, torch.as_tensor(stock(images=image, return_tensors="pt")["pixel_values"]))


def _flip_first(steps: list[Any]) -> list[Any]:
    return [RandomHorizontalFlip(1.0), *steps]


def _normalise_otherwise(steps: list[Any]) -> list[Any]:
    return [*steps[:-1], Normalize([0.9, 0.1, 0.2], [0.5, 0.6, 0.7])]


def _erase_between(steps: list[Any]) -> list[Any]:
    return [*steps[:-1], RandomErasing(1.0, (0.2, 0.2), (1.0, 1.0)), steps[-1]]


class _Inverted(ToTensor):
    def __call__(self, image: Any) -> Any:
        return 1 - super().__call__(image)


def _a_step_of_their_own(steps: list[Any]) -> list[Any]:
    return [*steps[:-2], _Inverted(), steps[-1]]


@pytest.mark.parametrize("change", [_flip_first, _normalise_otherwise, _erase_between, _a_step_of_their_own])
def test_the_transform_of_open_clip_may_be_replaced(change: Callable[[list[Any]], list[Any]]) -> None:
    collate, image = OpenClipEncoder("emoji-resnet").collate, noise(70, 50)
    collate.preprocess = Compose(change(collate.preprocess.transforms))
    torch.manual_seed(0)
    found = to_floats(collate([Sample(image=image)]))["pixel_values"][0]
    torch.manual_seed(0)
    assert torch.equal(found, collate.preprocess(image))


@pytest.mark.parametrize("side", [40, 2100], ids=["one block", "several blocks of Pillow's memory"])
def test_an_image_is_resized_where_pillow_keeps_it_or_from_a_copy(side: int) -> None:
    image = noise(side, side)
    assert_equal(
        T.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}), image
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
    found = to_floats({"pixels": pixels, "levels": module._levels(mean, std, 255)})["pixel_values"]
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


def test_any_function_may_stand_in_for_the_collate(tiny: Callable[[str], str], tmp_path: Path) -> None:
    encoder, samples = TwoTowerEncoder(tiny("clip")).eval(), [Sample(image=noise(40, 50))]
    encoder.network.save_pretrained(tmp_path)
    processor = T.CLIPProcessor.from_pretrained(tiny("clip"))
    processor.image_processor.image_mean = [0.9, 0.1, 0.2]
    processor.save_pretrained(tmp_path)
    other = TwoTowerEncoder(str(tmp_path)).eval()
    with torch.inference_mode():
        expected = other(**other.collate(samples))
        assert not torch.equal(encoder(**encoder.collate(samples)), expected)
        encoder.collate = lambda given: other.collate(given)
        assert torch.equal(encoder(**encoder.collate(samples)), expected)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_does_not_round_what_normalises_the_pixels(
    tiny: Callable[[str], str], precision: Any
) -> None:
    batch = TwoTowerEncoder(tiny("clip")).collate([Sample(image=noise(40, 50))])
    found = to_floats(HalfPrecision(precision).convert_input(batch))
    assert torch.equal(found["pixel_values"], to_floats(batch)["pixel_values"])


def test_8_bits_are_refused_where_floats_are_expected(tiny: Callable[[str], str]) -> None:
    encoder = TwoTowerEncoder(tiny("clip"))
    batch = encoder.collate([Sample(image=noise(40, 50))])
    with pytest.raises(KeyError, match="pixel_values"):
        encoder.encode_image(**batch)


def test_a_fingerprint_tells_encoders_apart_that_normalise_differently(tiny: Callable[[str], str]) -> None:
    encoder = TwoTowerEncoder(tiny("clip"))
    before = fingerprint(encoder)
    encoder.collate.image_processor.image_mean = [0.4, 0.5, 0.6]
    assert fingerprint(encoder) != before
