"""Decodes the bytes of image files to upright RGB, within limits."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import UnidentifiedImageError

from fanoise_lightning.pixels import open_image, upright_rgb

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_BYTES", "ImageError", "check_size", "decode", "named"]

MAX_BYTES = 256 * 2**20  # of one image file: a zip member of a few kB can unpack to gigabytes


class ImageError(Exception):
    """An image that cannot be used: missing, broken, too large, or outside its root."""


def decode(data: bytes, name: str, decode_size: int | None = None) -> Image.Image:
    """Decode the bytes of an image file.

    Args:
        data: JPEG, PNG, or another of `fanoise_lightning.pixels.FORMATS`.
        name: what to call the image in messages.
        decode_size: decode a JPEG at the smallest of the scales 1, 1/2, 1/4 and 1/8 at which its shorter side
            still has this many pixels. The decoder skips what the scale does not show, which saves most of
            the time for images that are resized to about `decode_size` afterwards. Other formats are decoded
            in full size, and ``None`` decodes all in full size.

    Returns:
        An RGB image, see `fanoise_lightning.pixels.upright_rgb`.

    Raises:
        ImageError: whatever is wrong with it; the message has `name` and the cause.
    """
    try:
        check_size(len(data))
        with open_image(io.BytesIO(data)) as image:
            if decode_size is not None:
                image.draft(None, (decode_size, decode_size))
            rgb = upright_rgb(image)
            rgb.load()
            return rgb
    except Exception as error:  # decoders raise almost anything on broken bytes
        raise named(name, error) from error


def check_size(size: int) -> None:
    """Refuse an image file of more than `MAX_BYTES`, where possible before it is read.

    Raises:
        ImageError: without the name of the image, which the caller adds.
    """
    if size > MAX_BYTES:
        raise ImageError(f"{size} bytes are more than {MAX_BYTES}")


def named(name: str, error: Exception) -> ImageError:
    """The error with the name of the image."""
    is_told = isinstance(error, (ImageError, UnidentifiedImageError, ValueError))
    cause = str(error) if is_told else f"{type(error).__name__}: {error}"
    return ImageError(f"image {name}: {cause}")
