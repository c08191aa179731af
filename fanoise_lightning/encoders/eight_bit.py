"""Images in 8 bits up to the encoder's device, where they are normalised: the same values in less time.

A worker hands over a quarter of the bytes, and resizes an image where Pillow keeps it. An image processor of
transformers first copies each image into planes, whose resizing takes half as long again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

__all__ = ["EightBit", "Normalise", "eight_bit", "normalise_of"]

_SIZES = ((90, 61), (61, 90), (7, 5))  # of the images of the check: wide, tall, small


@dataclass(frozen=True)
class Normalise:
    """8-bit pixels (..., 3, H, W) -> ``(pixels / divisor - mean) / std`` in float32, on their device.

    Args:
        mean: of each colour.
        std: of each colour.
        divisor: what pixels are divided by first.

    Example:
        >>> Normalise((127.5,) * 3, (127.5,) * 3)(torch.full((3, 1, 1), 255, dtype=torch.uint8)).flatten()
        tensor([1., 1., 1.])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    divisor: float = 1

    def __call__(self, pixels: Tensor) -> Tensor:
        values = pixels.float()
        if self.divisor != 1:
            values.div_(_column((self.divisor,), pixels.device))
        return values.sub_(_column(self.mean, pixels.device)).div_(_column(self.std, pixels.device))


@lru_cache(maxsize=64)
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(colours, 1, 1), kept: a copy to a GPU waits for it, and division by a number is inexact there."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


class EightBit:
    """The steps of an image processor of transformers before it leaves 8 bits, and the one after.

    Args:
        processor: resizes, may crop to the middle, then rescales and normalises, in this order.

    Attributes:
        normalise: its last step.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        # as the processor computes them
        levels = 1 / processor.rescale_factor
        mean, std = (
            torch.tensor(values).expand(3) * levels for values in (processor.image_mean, processor.image_std)
        )
        self.normalise = Normalise(tuple(mean.tolist()), tuple(std.tolist()))

    def __call__(self, image: Image.Image) -> Tensor:
        """The 8-bit pixels (3, H, W) of an RGB image."""
        pixels = _pixels(image)
        if self.processor.do_resize:
            pixels = self.processor.resize(pixels, self.processor.size, resample=self.processor.resample)
        if getattr(self.processor, "do_center_crop", None):
            pixels = self.processor.center_crop(pixels, self.processor.crop_size)
        return pixels[0, :3]


def eight_bit(processor: Any) -> EightBit | None:
    """The 8-bit form of an image processor, if it gives the same values on a few images; else ``None``.

    Args:
        processor: an image processor of transformers.
    """
    # other backends resize with another arithmetic
    if getattr(processor, "backend", None) != "torchvision":
        return None
    if not (processor.do_rescale and processor.do_normalize):
        return None
    images = [_noise(*size) for size in _SIZES]
    expected = processor(images=images)
    if set(expected) != {"pixel_values"}:
        return None
    ours = EightBit(processor)
    return ours if _agree(ours, images, expected["pixel_values"]) else None


def normalise_of(steps: Sequence[Any]) -> Normalise | None:
    """What ``ToTensor`` and ``Normalize`` do to 8-bit pixels, if these are the last steps; else ``None``."""
    from torchvision.transforms import Normalize, ToTensor

    kinds = ToTensor, Normalize
    if len(steps) < 2 or not all(isinstance(step, kind) for step, kind in zip(steps[-2:], kinds)):
        return None
    mean, std = (tuple(map(float, values)) for values in (steps[-1].mean, steps[-1].std))
    return Normalise(mean, std, 255)


def _agree(ours: EightBit, images: Sequence[Image.Image], expected: Sequence[Any]) -> bool:
    return all(
        torch.equal(ours.normalise(ours(image)), torch.as_tensor(values))
        for image, values in zip(images, expected)
    )


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
