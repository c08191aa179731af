"""The options for the size of a processor's images."""

from __future__ import annotations

from typing import Any, Literal

from PIL import Image

from fanoise_lightning._checks import check_at_least
from fanoise_lightning.encoders.families import Family

__all__ = ["RESOLUTIONS", "ImageSize", "configure_images", "resize", "square_edge"]

ImageSize = int | Literal["low", "high"]
RESOLUTIONS = {"low": 336, "high": 1344}


def square_edge(image_size: ImageSize | None) -> int | None:
    """The edge in pixels of the square that images are resized to; ``None`` leaves them as they are.

    Raises:
        ValueError: if it is neither a positive integer nor a known name.
    """
    if isinstance(image_size, str) and image_size in RESOLUTIONS:
        return RESOLUTIONS[image_size]
    if image_size is None or (type(image_size) is int and image_size > 0):
        return image_size
    names = ", ".join(f"{name!r} = {edge}x{edge}" for name, edge in RESOLUTIONS.items())
    raise ValueError(
        f"`image_size` must be the edge of a square in pixels, or one of {names}; got {image_size!r}"
    )


def resize(image: Image.Image, edge: int) -> Image.Image:
    """An image resized to a square without keeping its aspect ratio, as in the recipe of VLM2Vec."""
    return image if image.size == (edge, edge) else image.resize((edge, edge), Image.Resampling.BICUBIC)


def configure_images(
    processor: Any, family: Family, edge: int | None, max_pixels: int | None, num_crops: int | None
) -> None:
    """Set up a processor so that it honours the image options.

    Raises:
        ValueError: if the family does not take one of them, or a value makes no sense.
    """
    given = {"image_size": edge, "max_pixels": max_pixels, "num_crops": num_crops}
    for name, value in given.items():
        if value is None:
            continue
        if name not in family.image_options:
            options = " and ".join(f"`{option}`" for option in family.image_options)
            raise ValueError(f"{family.name} takes no `{name}`; its images are set by {options}")
        check_at_least(name, value, 1)
    images = processor.image_processor
    if "max_pixels" in family.image_options and (edge or max_pixels):
        smallest, largest = images.size["shortest_edge"], images.size["longest_edge"]
        token = (images.patch_size * images.merge_size) ** 2
        if edge:  # the processor's own limits would shrink or enlarge the square
            smallest, largest = min(smallest, edge**2), max(largest, edge**2)
        if max_pixels is not None:
            if max_pixels < token:
                raise ValueError(f"`max_pixels` must be at least {token}, one token, got {max_pixels}")
            smallest, largest = min(smallest, max_pixels), max_pixels
        images.size = {"shortest_edge": smallest, "longest_edge": largest}
    if num_crops is not None:
        images.num_crops = num_crops
