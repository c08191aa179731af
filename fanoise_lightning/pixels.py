"""The rule for images: which files are decoded, and how their values become upright 8-bit RGB."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["FORMATS", "MAX_PIXELS", "open_image", "upright_rgb"]

MAX_PIXELS = 89_478_485  # Pillow's own limit, at which it only warns: 256 MiB decoded

# The decoders of Pillow that only decode pixels: its EPS decoder, for one, starts Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SAYS_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_BITS, _PHOTOMETRIC, _LARGEST = 258, 262, 281  # TIFF tags; the last is MaxSampleValue
_DEEP = 65535  # the largest value of 16 bits
_SCALED = ("JPEG2000", "PNG", "PPM")  # their specifications define 16-bit values from 0 to 65535


def open_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Open an image file of one of the `FORMATS`, whatever its name; its pixels are decoded later.

    Args:
        file: a path, or an open file.

    Raises:
        OSError: if it cannot be read, or is not an image of these formats (`PIL.UnidentifiedImageError`).
        ValueError: if it has more than `MAX_PIXELS` pixels.
    """
    try:
        image = Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:  # its own message holds a memory address, which always differs
        message = f"it is not an image in one of the formats {', '.join(FORMATS)}"
        raise UnidentifiedImageError(message) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
    return image


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # Pillow may be built without some


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image, upright by its EXIF orientation, in 8-bit RGB, with transparency composited onto white.

    An image whose orientation cannot be read counts as upright.

    Values of more than 8 bits are scaled if the file states their range: PNG, JPEG 2000 and PGM by their
    formats, TIFF by its tags. An image that was converted or copied in memory has lost its range.

    Raises:
        ValueError: if only the user can know the range of its values: floating point, 32 bits, 16 bits in
            memory, or 16 bits whose upper two are unused, as written by cameras of 10 to 14 bits; or if it
            has no pixels.
    """
    if not image.width or not image.height:
        raise ValueError(f"an image of {image.width}x{image.height} has no pixels: remove it")
    depth = _Depth.of(image)  # before its pixels are loaded: afterwards this information is gone
    image = _upright(image)
    if depth is not None:
        image = depth.scale(image)
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow converts it to
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "TIFF":  # orientation is part of the format; Pillow may turn the image when it loads
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    image.load()  # or an error in the pixels would be taken for one in the EXIF block
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged block raises almost anything
        return image
    if turn is None:
        return image
    # not `exif_transpose`: it rewrites the block, which fails if any of its tags is damaged
    upright = image.transpose(turn)
    upright.info = {key: value for key, value in image.info.items() if key not in _SAYS_ORIENTATION}
    return upright


@dataclass(frozen=True)
class _Depth:
    """How an image holds more than 8 bits per colour.

    Args:
        white: the value of white in a grey image; ``None`` if unknown.
        inverted: whether white is 0 instead.
        presumed: whether all 16 bits are assumed to be used, because the file does not state it.
    """

    white: int | None
    inverted: bool = False
    presumed: bool = False

    @classmethod
    def of(cls, image: Image.Image) -> _Depth | None:
        """``None`` for 8 bits."""
        if image.mode[0] not in "IF":
            # of colour images Pillow keeps only the upper 8 bits
            return cls(_DEEP >> 8, presumed=True) if ";16" in str(getattr(image, "tile", "")) else None
        if image.mode != "F" and image.format in _SCALED:
            return cls(_DEEP, presumed=True)
        if image.mode.startswith("I;16") and image.format == "TIFF":
            tags = image.tag_v2  # type: ignore[attr-defined]
            bits, white, kind = (_first(tags.get(tag)) for tag in (_BITS, _LARGEST, _PHOTOMETRIC))
            largest = white or 2 ** (bits or 16) - 1
            return cls(largest, inverted=kind == 0, presumed=largest == _DEEP)
        return cls(None)

    def scale(self, image: Image.Image) -> Image.Image:
        """The image in 8 bits; one whose colours Pillow has already reduced is only checked."""
        if self.white is None:
            raise _unknown(image, "has no known range of values")
        grey = image.mode[0] in "IF"
        values = image.convert("I") if grey else image
        highest = max(high for _, high in _extrema(values))
        if self.presumed and not self.inverted and 0 < highest <= self.white // 4:
            raise _unknown(image, "uses no value above a quarter of its 16 bits: they may hold 10 to 14")
        if not grey:
            return image
        scale = 255 / self.white
        slope, base = (-scale, 255.0) if self.inverted else (scale, 0.0)
        return values.point(lambda value: value * slope + base).convert("L")


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    """The smallest and largest value of each colour, without transparency."""
    bands = zip(image.getbands(), image.split())
    return [band.getextrema() for name, band in bands if name not in "Aa"]  # type: ignore[misc]


def _first(value: int | tuple[int, ...] | None) -> int | None:
    return value[0] if isinstance(value, tuple) else value


def _unknown(image: Image.Image, cause: str) -> ValueError:
    return ValueError(
        f"an image of mode {image.mode!r} ({image.width}x{image.height}) {cause}: scale it to 0..255 and "
        "convert it to RGB first"
    )
