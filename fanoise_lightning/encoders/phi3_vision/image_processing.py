"""The image processor of Phi-3.5-vision: images in, the crops of the HD transform out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

from fanoise_lightning.encoders.phi3_vision.hd_transform import (
    CROP_SIZE,
    cut_crops,
    hd_grid,
    hd_resize,
    num_image_tokens,
)

__all__ = ["Phi3VImageProcessor"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Phi3VImagesKwargs(ImagesKwargs, total=False):
    num_crops: int


class Phi3VImageProcessor(BaseImageProcessor):
    """Cuts each image into a global view and at most ``num_crops`` crops of 336 x 336 pixels.

    Args:
        num_crops: the maximum number of crops of an image, at least 1. The published model was trained with
            up to 16 and defaults to 4. It decides how many tokens an image has: a square one has 757 with 4
            crops and 2509 with 16.
        image_mean: one number per colour, subtracted from pixels in [0, 1].
        image_std: one number per colour, by which they are then divided.
        **kwargs: whatever else a saved ``preprocessor_config.json`` holds.

    Raises:
        ValueError: if ``num_crops`` is not a positive integer.

    Example:
        >>> Phi3VImageProcessor(num_crops=16).num_image_tokens(1920, 1080)
        2353
    """

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012
    valid_kwargs = Phi3VImagesKwargs

    def __init__(
        self,
        num_crops: int = 4,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_crops = _check_num_crops(num_crops)
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def num_image_tokens(self, width: int, height: int, num_crops: int | None = None) -> int:
        """The number of tokens of an image of this width and height in pixels."""
        return num_image_tokens(
            *hd_grid(width, height, _check_num_crops(self.num_crops if num_crops is None else num_crops))
        )

    def preprocess(
        self,
        images: Image.Image | Sequence[Image.Image],
        num_crops: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Crops of n images.

        Args:
            images: one PIL image or a flat sequence of n.
            num_crops: overrides the processor's own.
            return_tensors: "pt" or "np".
            **kwargs: none are taken; settings of other families are refused, as they would have no effect.

        Returns:
            ``pixel_values`` (n, num_crops + 1, 3, 336, 336) float32, the global view first, zeros after an
            image's last crop; ``image_sizes`` (n, 2) int64, height and width of the padded image in
            pixels; ``num_img_tokens``, the number of tokens of each image.

        Raises:
            TypeError: if an image is not a PIL image.
            ValueError: if ``num_crops`` is not a positive integer, or for an unknown setting.
        """
        if kwargs:
            raise ValueError(f"Phi3VImageProcessor has no setting {sorted(kwargs)}; it has num_crops.")
        num_crops = _check_num_crops(self.num_crops if num_crops is None else num_crops)
        images = [images] if isinstance(images, Image.Image) else list(images)
        pixel_values = torch.zeros(len(images), num_crops + 1, 3, CROP_SIZE, CROP_SIZE)
        image_sizes = torch.zeros(len(images), 2, dtype=torch.int64)
        for i, image in enumerate(images):
            if not isinstance(image, Image.Image):
                raise TypeError(f"image {i} is a {type(image).__name__}; expected a PIL image.")
            padded = hd_resize(image, num_crops)
            crops = cut_crops(padded, self.image_mean, self.image_std)
            pixel_values[i, : len(crops)] = crops
            image_sizes[i] = torch.tensor([padded.height, padded.width])
        tokens = [num_image_tokens(h // CROP_SIZE, w // CROP_SIZE) for h, w in image_sizes.tolist()]
        data = {"pixel_values": pixel_values, "image_sizes": image_sizes, "num_img_tokens": tokens}
        return BatchFeature(data, tensor_type=return_tensors)


def _check_num_crops(num_crops: int) -> int:
    if isinstance(num_crops, bool) or not isinstance(num_crops, int) or num_crops < 1:
        raise ValueError(f"num_crops is {num_crops!r}; expected a positive integer, such as 4 or 16.")
    return num_crops
