"""Thumbnails for a page: small, and part of the page."""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fanoise_lightning.data.images.decode import ImageError, decode
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.rows.paths import ABSOLUTE

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Pictures"]

_QUALITIES = (80, 60, 40, 20)
_BYTES = 12 * 2**10  # of one thumbnail: noise does not compress


class Pictures:
    """Opens pictures and makes them thumbnails, each once.

    Only what lies under the root is opened, for a page may be passed on: a catalogue of someone else could
    name any picture of this machine.

    Args:
        root: the folder or zip archive of the pictures; ``None`` if there is none.
        size: the longer side, in pixels.

    Attributes:
        missing: why a picture has no thumbnail, by its path.
    """

    def __init__(self, root: str | Path | None, size: int = 192) -> None:
        self.size, self.missing = size, dict[str, str]()
        self._uris: dict[str, str] = {}
        self._root: ImageRoot | None = None
        self._why = "the catalogue has no image root"
        if root is not None:
            try:
                self._root = ImageRoot(root)
            except (FileNotFoundError, ValueError) as error:  # moved: the hits are there all the same
                self._why = str(error)

    def thumbnail(self, path: str) -> str:
        """A picture as a ``data:`` address; ``""`` if it cannot be opened, which is then in ``missing``."""
        if path not in self._uris:
            try:
                if self._root is None:
                    raise ImageError(self._why)
                image = decode(self._root.read(_below(self._root.path, path)), path, 2 * self.size)
                self._uris[path] = data_uri(image, self.size)
            except (ImageError, OSError, ValueError) as error:
                self._uris[path], self.missing[path] = "", str(error)
        return self._uris[path]


def _below(root: Path, path: str) -> str:
    """A path relative to the root, which checks relative ones itself.

    Raises:
        ImageError: if it is absolute and outside.
    """
    if not re.match(ABSOLUTE, path):
        return path
    for file in (Path(os.path.realpath(path)), Path(path)):  # the root may hold links to other disks
        if file.is_relative_to(root):
            return file.relative_to(root).as_posix()
    raise ImageError(f"it is outside the image root `{root}`; `--image_root` names another")


def data_uri(image: Image.Image, size: int) -> str:
    """An RGB image as a ``data:`` address of at most 16 kB."""
    image = image.copy()
    image.thumbnail((size, size))
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= _BYTES:
            break
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
