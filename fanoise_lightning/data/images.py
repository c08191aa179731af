"""Pictures of rows, decoded to upright RGB within limits, wherever their bytes come from."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import UnidentifiedImageError

from fanoise_lightning.pixels import open_picture, upright_rgb

if TYPE_CHECKING:
    from PIL import Image

    from fanoise_lightning.data.embedded import EmbeddedPictures
    from fanoise_lightning.data.image_roots import ImageRoot

__all__ = ["LEAVES_ROOT", "MAX_BYTES", "PictureError", "Pictures", "check_size", "decode"]

MAX_BYTES = 256 * 2**20  # of one picture file: a zip member of a few kB can unpack to gigabytes

# absolute, a drive letter, or a `..` between separators of either kind; RE2 and `re` both read it
LEAVES_ROOT = r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|\x00"


class PictureError(Exception):
    """A picture that cannot be used: missing, broken, too large, or outside its root."""


@dataclass(frozen=True)
class Pictures:
    """Opens the pictures of rows: files and archive members under a root, and those embedded in the rows.

    Can be pickled and forked.

    Args:
        root: where the paths lead; ``None`` if no row has a path.
        embedded: the pictures that came as bytes in the rows, under the keys that stand for their paths.
        decode_size: see `decode`.

    Example:
        >>> Pictures(ImageRoot("images.zip")).open("train/cat.jpg").mode  # doctest: +SKIP
        'RGB'
    """

    root: ImageRoot | None = None
    embedded: Sequence[EmbeddedPictures] = ()
    decode_size: int | None = None

    def open(self, image: str | bytes) -> Image.Image:
        """Decode one picture.

        Args:
            image: a path relative to the root, with forward slashes, the key of an embedded picture, or the
                bytes of a picture file.

        Returns:
            An RGB picture, see `decode`.

        Raises:
            PictureError: whatever is wrong with it; the message names the picture and the cause.
        """
        if isinstance(image, bytes):
            return decode(image, f"of {len(image)} embedded bytes", self.decode_size)
        for store in self.embedded:
            if (data := store.get(image)) is not None:
                return decode(data, f"`{image}`", self.decode_size)
        name = f"`{image}`" if self.root is None else f"`{image}` in `{self.root.path}`"
        try:
            if self.root is None:
                raise PictureError("there is no image root")
            data = self.root.read(image)
        except (PictureError, OSError) as error:
            raise _named(name, error) from error
        return decode(data, name, self.decode_size)


def decode(data: bytes, name: str, decode_size: int | None = None) -> Image.Image:
    """Decode the bytes of a picture file.

    Args:
        data: JPEG, PNG, or another of `fanoise_lightning.pixels.FORMATS`.
        name: what to call the picture in messages.
        decode_size: decode a JPEG at the smallest of the scales 1, 1/2, 1/4 and 1/8 at which its shorter side
            is still at least so many pixels. The decoder leaves out what the scale does not show, which saves
            most of the time for pictures that are resized to about `decode_size` afterwards. Other formats
            come in full; ``None``: all do.

    Returns:
        An RGB picture, see `fanoise_lightning.pixels.upright_rgb`.

    Raises:
        PictureError: whatever is wrong with it; the message has `name` and the cause.
    """
    try:
        check_size(len(data))
        with open_picture(io.BytesIO(data)) as image:
            if decode_size is not None:
                image.draft(None, (decode_size, decode_size))
            rgb = upright_rgb(image)
            rgb.load()
            return rgb
    except Exception as error:  # decoders raise almost anything on broken bytes
        raise _named(name, error) from error


def check_size(size: int) -> None:
    """Refuse a picture file of more than `MAX_BYTES`, before it is read where its size is known before.

    Raises:
        PictureError: without a name: whoever opens the picture adds it.
    """
    if size > MAX_BYTES:
        raise PictureError(f"{size} bytes are more than {MAX_BYTES}")


def _named(name: str, error: Exception) -> PictureError:
    is_told = isinstance(error, (PictureError, UnidentifiedImageError, ValueError))
    cause = str(error) if is_told else f"{type(error).__name__}: {error}"
    return PictureError(f"picture {name}: {cause}")
