"""Images in 8 bits up to the encoder's device, where they are normalised: the same values in less time.

A worker hands over a quarter of the bytes, and resizes an image where Pillow keeps it. An image processor of
transformers first copies each image into planes, whose resizing takes half as long again.

A batch says itself how its pixels are normalised, so that it does not matter who collated it. They are not
called ``pixel_values``: another model would take 0 to 255 for normalised values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

__all__ = ["EightBit", "of_steps", "to_floats"]

_SIZES = ((90, 61), (61, 90), (7, 5))  # of the images of the check: wide, tall, small


def to_floats(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of an image tower with ``pixel_values``, float32, for ``pixels`` of 8 bits, on their device.

    Args:
        inputs: ``pixels`` (P, 3, H, W) and ``levels`` (2 or 3, 12): the mean and the standard deviation of
            each colour, and what pixels are divided by first. Others stay as they are.

    Example:
        >>> inputs = {"pixels": torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)}
        >>> to_floats(inputs | {"levels": _levels(127.5, 127.5)})["pixel_values"].flatten()
        tensor([1., 1., 1.])
    """
    if "pixels" not in inputs:
        return inputs
    others = {name: value for name, value in inputs.items() if name not in ("pixels", "levels")}
    # by tensors: division by a number is inexact on a GPU
    mean, std, *divisors = inputs["levels"].view(torch.float32)[..., None, None]
    values = inputs["pixels"].float()
    for divisor in divisors:
        values.div_(divisor)
    return {**others, "pixel_values": values.sub_(mean).div_(std)}


def _levels(*rows: Any) -> Tensor:
    """(len(rows), 12): values of three colours, float32, as bytes, which Lightning does not round to half."""
    values = [torch.as_tensor(row, dtype=torch.float32).expand(3) for row in rows]
    return torch.stack(values).view(torch.uint8)


def _collated(pixels: Iterable[Tensor], levels: Tensor) -> dict[str, Tensor]:
    # `default_collate` stacks in the memory that a worker shares with the main process, which saves a copy
    return {"pixels": default_collate(list(pixels)), "levels": levels}


class EightBit:
    """Images as an image processor of transformers resizes and crops them, still in 8 bits.

    Whether its own values would be the same is checked on a few images: now, and when its settings have
    changed, or another one has taken its place.

    Args:
        processor: the one to check now.
    """

    def __init__(self, processor: Any) -> None:
        self._checked: tuple[str, bool] = ("", False)
        self._fits(processor)

    def __call__(self, processor: Any, images: Sequence[Image.Image]) -> dict[str, Tensor] | None:
        """RGB images for :func:`to_floats`; ``None`` if only the processor itself gives its values."""
        return _process(processor, images) if self._fits(processor) else None

    def _fits(self, processor: Any) -> bool:
        settings = f"{type(processor)} {vars(processor)}"
        if settings != self._checked[0]:
            self._checked = settings, _is_equal(processor)
        return self._checked[1]


def _process(processor: Any, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    levels = 1 / processor.rescale_factor
    # in the order of the processor
    rows = (torch.tensor(values) * levels for values in (processor.image_mean, processor.image_std))
    return _collated((_resize(processor, image) for image in images), _levels(*rows))


def _resize(processor: Any, image: Image.Image) -> Tensor:
    pixels = _pixels(image)
    if processor.do_resize:
        pixels = processor.resize(pixels, processor.size, resample=processor.resample)
    if getattr(processor, "do_center_crop", None):
        pixels = processor.center_crop(pixels, processor.crop_size)
    return pixels[0, :3]


def _is_equal(processor: Any) -> bool:
    """Whether a processor resizes, may crop to the middle, then rescales and normalises, and no more."""
    # other backends resize with another arithmetic
    if not _is_stock(processor, "transformers") or getattr(processor, "backend", None) != "torchvision":
        return False
    if not (processor.do_rescale and processor.do_normalize):
        return False
    if processor.resample == Image.Resampling.NEAREST:  # of strips another, with colours side by side
        return False
    for image in (_noise(*size) for size in _SIZES):
        expected = processor(images=[image])
        if set(expected) != {"pixel_values"}:
            return False
        try:
            found = to_floats(_process(processor, [image]))["pixel_values"]
        except AttributeError:  # of a size that was set to a dict or a number, which it reads itself
            return False
        if not torch.equal(found[0], torch.as_tensor(expected["pixel_values"][0])):
            return False
    return True


def of_steps(transform: Any) -> Callable[[Sequence[Image.Image]], dict[str, Tensor]] | None:
    """A transform of torchvision up to where it leaves 8 bits, for :func:`to_floats`.

    ``None`` if its last steps are not ``ToTensor`` and ``Normalize``.
    """
    from torchvision.transforms import Compose, Normalize, PILToTensor, ToTensor

    steps = list(getattr(transform, "transforms", ()))
    kinds = ToTensor, Normalize
    if len(steps) < 2 or not all(
        isinstance(step, kind) and _is_stock(step, "torchvision", "open_clip")
        for step, kind in zip(steps[-2:], kinds)
    ):
        return None
    pixels, levels = Compose([*steps[:-2], PILToTensor()]), _levels(steps[-1].mean, steps[-1].std, 255)
    return lambda images: _collated(map(pixels, images), levels)


def _is_stock(step: Any, *libraries: str) -> bool:
    """Whether its class is a library's: one of a user may do more, with some images, or at random."""
    return type(step).__module__.partition(".")[0] in libraries


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def _pixels(image: Image.Image) -> Tensor:
    """(1, C, H, W), colours side by side: the memory of Pillow, whose fourth byte is unused, or a copy."""
    size = (1, image.height, image.width, -1)
    try:
        values = torch.from_dlpack(pa.array(image).values).view(size)
    except (TypeError, ValueError):  # Pillow before 11.3, or an image in several blocks of memory
        values = torch.from_numpy(np.array(image)).view(size)
    return values.permute(0, 3, 1, 2)
