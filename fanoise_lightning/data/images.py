"""The one place that opens a picture: a folder or a zip, decoded to RGB, nothing outside the root."""

from __future__ import annotations

import io
import os
import posixpath
import re
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

__all__ = ["LEAVES_ROOT", "MAX_BYTES", "MAX_PIXELS", "ImageRoot", "PictureError"]

MAX_PIXELS = 89_478_485  # Pillow's own limit, there a warning only: 256 MiB decoded
MAX_BYTES = 256 * 2**20  # of one picture file: a zip member of a few kB can unpack to gigabytes

# absolute, a drive letter, or a `..` between separators of either kind; RE2 and `re` both read it
LEAVES_ROOT = r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|\x00"


class PictureError(Exception):
    """A picture that cannot be used: missing, broken, too large, or outside its root."""


class ImageRoot:
    """The pictures that the path columns speak of.

    Can be pickled and forked: a zip is opened by each process for itself, at its first picture.

    Args:
        path: a folder or a zip archive.

    Raises:
        FileNotFoundError: if `path` is neither.

    Example:
        >>> ImageRoot("images.zip").open("train/cat.jpg").mode  # doctest: +SKIP
        'RGB'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._archive: zipfile.ZipFile | None = None
        self._owner = (
            0  # the process that opened the archive: a fork shares the file position with its parent
        )
        self.is_folder = self.path.is_dir()
        if not self.is_folder and not (self.path.is_file() and zipfile.is_zipfile(self.path)):
            raise FileNotFoundError(f"image root `{path}` is neither a folder nor a zip archive")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None, "_owner": 0}

    def open(self, path: str) -> Image.Image:
        """Decode one picture.

        Args:
            path: relative to the root, with forward slashes.

        Returns:
            An RGB picture, turned upright by its EXIF orientation, transparency laid on white.

        Raises:
            PictureError: whatever is wrong with it; the message names the path and the cause.
        """
        try:
            if re.search(LEAVES_ROOT, path):
                raise PictureError("the path leaves the image root")
            data = self._read_file(path) if self.is_folder else self._read_member(path)
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise PictureError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
                return _to_rgb(ImageOps.exif_transpose(image))
        except Exception as error:  # decoders raise almost anything on broken bytes
            cause = str(error) if isinstance(error, PictureError) else f"{type(error).__name__}: {error}"
            raise PictureError(f"picture `{path}` in `{self.path}`: {cause}") from error

    def _read_file(self, path: str) -> bytes:
        file = (self.path / path).resolve()
        if not file.is_relative_to(self.path):
            raise PictureError("a symbolic link leaves the image root")
        if not file.is_file():
            raise PictureError("no such file")
        if (size := file.stat().st_size) > MAX_BYTES:
            raise PictureError(f"{size} bytes are more than {MAX_BYTES}")
        return file.read_bytes()

    def _read_member(self, path: str) -> bytes:
        if self._archive is None or self._owner != os.getpid():
            self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
        try:
            member = self._archive.getinfo(posixpath.normpath(path))
        except KeyError:
            raise PictureError("no such file in the archive") from None
        if member.file_size > MAX_BYTES:
            raise PictureError(f"{member.file_size} bytes are more than {MAX_BYTES}")
        return self._archive.read(member)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bit: Pillow would clip to 255 instead of scaling
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()
    return image
