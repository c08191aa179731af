"""Opens the images of rows, wherever their bytes come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from fanoise_lightning.data.images.decode import ImageError, decode, named
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.rows.embedded import EmbeddedImages
from fanoise_lightning.data.rows.references import Reference
from fanoise_lightning.sample import Sample

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

    Example:
        >>> ImageStore(ImageRoot("images.zip")).open("train/cat.jpg").mode  # doctest: +SKIP
        'RGB'
    """

    root: ImageRoot | None = None
    embedded: Sequence[EmbeddedImages] = ()
    decode_size: int | None = None

    def prepare(self, paths: pa.Array, subset: str) -> None:
        """Check that there are images for the `paths` of a subset, and open the archives that they need.

        Called before processes are forked, which share what is open.

        Raises:
            FileNotFoundError: if the images are missing; says how to get them.
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
        if isinstance(image, bytes):
            return decode(image, f"of {len(image)} embedded bytes", self.decode_size)
        for images in self.embedded:
            if (data := images.get(image)) is not None:
                return decode(data, f"`{image}`", self.decode_size)
        name = f"`{image}`" if self.root is None else f"`{image}` in `{self.root.path}`"
        try:
            if self.root is None:
                raise ImageError("there is no image root")
            data = self.root.read(image)
        except (ImageError, OSError) as error:
            raise named(name, error) from error
        return decode(data, name, self.decode_size)

    def sample(self, reference: Reference) -> Sample:
        """The text of a reference with its image opened.

        Raises:
            ImageError: see `open`.
        """
        return Sample(reference.text, self.open(reference.image) if reference.image != "" else None)
