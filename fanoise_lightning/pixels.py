"""The one rule for images: which files are decoded, and how their values become upright 8-bit RGB."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["FORMATS", "MAX_PIXELS", "open_image", "upright_rgb"]

MAX_PIXELS = 89_478_485  # Pillow's own limit, there a warning only: 256 MiB decoded

# Of Pillow's decoders those that decode pixels and do nothing else: its EPS decoder starts Ghostscript.
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
_DEEP = 65535  # of 16 bits
_SCALED = ("JPEG2000", "PNG", "PPM")  # formats whose 16-bit values run from 0 to 65535 by specification


def open_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Open an image file of one of the `FORMATS`, whatever its name says; its pixels are decoded later.

    Args:
        file: a path, or an open file.

    Raises:
        OSError: if it cannot be read, or is no image of these formats (`PIL.UnidentifiedImageError`).
        ValueError: if it has more than `MAX_PIXELS`.
    """
    try:
        image = Image.open(file, formats=_formats())
    except UnidentifiedImageError as error:  # its own text has an address, another at each try
        told = f"it is no image, or of a format that is not read ({', '.join(FORMATS)} are)"
        raise UnidentifiedImageError(told) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
    return image


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # Pillow may be built without some


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation, in 8-bit RGB; transparency is laid on white.

    An image whose orientation cannot be read is upright.

    Values of more than 8 bits are scaled where the file says what their range is: PNG, JPEG 2000 and PGM by
    their formats, TIFF by its tags. An image that was converted or copied in memory has lost that.

    Raises:
        ValueError: if nobody but the user knows the range of its values: floating point, 32 bits, 16 bits in
            memory, or 16 bits of which the upper two are never used, as cameras of 10 to 14 bits write them;
            or if it has no pixels.
    """
    if not image.width or not image.height:
        raise ValueError(f"an image of {image.width}x{image.height} has no pixels: leave it out")
    depth = _Depth.of(image)  # before its pixels are loaded: what is read here is gone afterwards
    image = _upright(image)
    if depth is not None:
        image = depth.scale(image)
    if image.mode == "La":
        image = image.convert("LA")  # Pillow converts it to nothing else
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "TIFF":  # the orientation is a part of the format; Pillow may turn it as it loads
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    image.load()  # or an error of the pixels would be taken for one of the EXIF block
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # almost anything, for a damaged block
        return image
    if turn is None:
        return image
    # not `exif_transpose`: it writes the block anew, which fails if any of its tags is damaged
    upright = image.transpose(turn)
    upright.info = {key: value for key, value in image.info.items() if key not in _SAYS_ORIENTATION}
    return upright


@dataclass(frozen=True)
class _Depth:
    """How an image holds more than 8 bits of a colour.

    Args:
        white: the value of white in a grey image; ``None`` if nothing says so.
        inverted: whether white is 0 instead.
        presumed: whether all 16 bits are taken to be used, because nothing says otherwise.
    """

    white: int | None
    inverted: bool = False
    presumed: bool = False

    @classmethod
    def of(cls, image: Image.Image) -> _Depth | None:
        """``None`` for 8 bits."""
        if image.mode[0] not in "IF":
            # of colours Pillow keeps the upper 8 bits
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
        """8 bits; an image whose colours Pillow reduced already is only checked."""
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
    """Least and largest value of each colour, transparency left out."""
    bands = zip(image.getbands(), image.split())
    return [band.getextrema() for name, band in bands if name not in "Aa"]  # type: ignore[misc]


def _first(value: int | tuple[int, ...] | None) -> int | None:
    return value[0] if isinstance(value, tuple) else value


def _unknown(image: Image.Image, cause: str) -> ValueError:
    return ValueError(
        f"an image of mode {image.mode!r} ({image.width}x{image.height}) {cause}: scale it to 0..255 and "
        "convert it to RGB first"
    )
