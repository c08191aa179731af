"""Opens the images of rows, wherever their bytes come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

import pyarrow as pa

from fanoise_lightning.data.images.decode import ImageError, decode, named
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.rows.embedded import EmbeddedImages
from fanoise_lightning.data.rows.references import Reference
from fanoise_lightning.sample import DeferredImage, Sample

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageStore"]


@dataclass(frozen=True)
class ImageStore:
    """Opens the images of rows: files and archive members under a root, and images embedded in the rows.

    Can be pickled and forked.

    Args:
        root: what the paths are relative to; ``None`` if there is none.
        embedded: the images that came as bytes in the rows, under the keys that replace their paths.
        decode_size: see `decode`.
        deferred: read images, and decode them only when somebody looks at them.

    Example:
        >>> ImageStore(ImageRoot("images.zip")).open("train/cat.jpg").mode  # doctest: +SKIP
        'RGB'
    """

    root: ImageRoot | None = None
    embedded: Sequence[EmbeddedImages] = ()
    decode_size: int | None = None
    deferred: bool = False
    _keys: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def prepare(self, paths: pa.Array, subset: str) -> None:
        """Check that there are images for the `paths` of a subset, and open the archives that they need.

        Called before processes are forked, which share what is open.

        Raises:
            FileNotFoundError: if the images are missing, with how to get them.
            ValueError: if an archive cannot be read.
        """
        if not len(paths):
            return
        if self.root is None:
            raise FileNotFoundError(
                f"subset `{subset}` has images (the first: `{paths[0]}`), but there is no image root: "
                "expected images/ or images.zip beside train/ and eval/"
            )
        self.root.prepare(paths, subset)

    def open(self, image: str | bytes) -> Image.Image:
        """Decode one image.

        Args:
            image: a path relative to the root, with forward slashes; the key of an embedded image; or the
                bytes of an image file.

        Returns:
            An RGB image, see `decode`.

        Raises:
            ImageError: whatever is wrong with it; the message names the image and the cause.
        """
        data, name = self.read(image)
        return decode(data, name, self.decode_size)

    def read(self, image: str | bytes) -> tuple[bytes, str]:
        """The bytes of an image as they are stored, and what messages call it.

        Raises:
            ImageError: if it cannot be read; the message names the image and the cause.
        """
        if isinstance(image, bytes):
            return image, f"of {len(image)} embedded bytes"
        for images in self.embedded:
            if (data := images.get(image)) is not None:
                return data, f"`{image}`"
        name = f"`{image}`" if self.root is None else f"`{image}` in `{self.root.path}`"
        try:
            if self.root is None:
                raise ImageError("there is no image root")
            return self.root.read(image), name
        except (ImageError, OSError) as error:
            raise named(name, error) from error

    def _defer(self, image: str | bytes) -> DeferredImage:
        """The image by the hash of its file, which is read once."""
        key = self._keys.get(image) if isinstance(image, str) else None
        if key is None:
            data, _ = self.read(image)
            key = self._key(data)
            if isinstance(image, str):
                self._keys[image] = key
        return DeferredImage(key, partial(self._open_unchanged, image, key))

    def _open_unchanged(self, image: str | bytes, key: str) -> Image.Image:
        data, name = self.read(image)
        if self._key(data) != key:  # else the features of one picture were kept under the key of another
            raise named(name, ImageError("it has changed since it was first read; start again to use it"))
        return decode(data, name, self.decode_size)

    def _key(self, data: bytes) -> str:
        return blake2b(data + f" {self.decode_size}".encode(), digest_size=16).hexdigest()

    def sample(self, reference: Reference) -> Sample:
        """The text of a reference with its image opened, or deferred.

        Raises:
            ImageError: see `open`; for a deferred image, if it cannot be read.
        """
        if reference.image == "":
            return Sample(reference.text)
        image = self._defer(reference.image) if self.deferred else self.open(reference.image)
        return Sample(reference.text, image)
