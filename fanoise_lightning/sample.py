"""A sample and a pair of samples: all that data and encoders know of each other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageLike = Image | np.ndarray[Any, Any] | str | os.PathLike[str]

__all__ = ["IMAGE_PLACEHOLDER", "Collate", "DeferredImage", "Pair", "Sample", "image_key", "text_key"]

IMAGE_PLACEHOLDER = re.compile(r"<\|image_(\d+)\|>")
"""The placeholder of an image in a text, with its number, from 1."""


@dataclass(frozen=True)
class DeferredImage:
    """An image that is opened whenever somebody looks at it, and not kept.

    Args:
        key: equal for equal images, in every process and run.
        open: opens it.
    """

    key: str
    open: Callable[[], Image]

    @property
    def image(self) -> Image:
        """The image, opened anew."""
        return self.open()


@dataclass(frozen=True, slots=True)
class Sample:
    """A text, an image, or both: what an encoder turns into one embedding.

    Instructions and columns are resolved before a sample is made. In a sample with a text and images, the
    images come before the text, unless ``<|image_1|>``, ``<|image_2|>``, ... in the text are their places.

    Args:
        text: the text; ``""`` for none.
        image: an image, or a list or tuple of several; ``None`` for none. An image is a Pillow image, an
            array of 8-bit values, (H, W) grey or (H, W, 3) RGB or (H, W, 4) RGBA, or the path of a file,
            which is decoded to upright RGB. It is kept as one Pillow image or a tuple of them.

    Raises:
        TypeError: if the text is not a string, or an image is none of the above.
        ValueError: if there is neither a text nor an image, if an array has another shape or other values,
            or if a file is not an image.
        FileNotFoundError: if there is no such file.

    Example:
        >>> Sample(text="a red apple").images
        ()
        >>> Sample(image=np.zeros((20, 30, 3), np.uint8)).image.size
        (30, 20)
    """

    text: str = ""
    image: Image | DeferredImage | tuple[Image | DeferredImage, ...] | None = None

    if TYPE_CHECKING:
        # more types are accepted than kept
        def __init__(
            self, text: str = "", image: ImageLike | DeferredImage | Sequence[ImageLike] | None = None
        ) -> None: ...

    def __post_init__(self) -> None:
        _check_text(self.text)
        if isinstance(self.image, list | tuple):
            images = tuple(_to_image(image, f"`image[{i}]`") for i, image in enumerate(self.image))
            object.__setattr__(self, "image", images)
        elif self.image is not None:
            object.__setattr__(self, "image", _to_image(self.image, "`image`"))
        if not self.text and not self._held:
            raise ValueError("`Sample` needs a text, an image or both, got neither")

    @property
    def images(self) -> tuple[Image, ...]:
        """The images: none, one or several. A deferred one is opened, which may fail."""
        return tuple(image.image if isinstance(image, DeferredImage) else image for image in self._held)

    @property
    def image_keys(self) -> tuple[str, ...]:
        """A key for each image, see :func:`image_key`. A deferred one is not opened."""
        return tuple(map(image_key, self._held))

    @property
    def key(self) -> str:
        """Equal for samples of the same text and images, in every process and run.

        Example:
            >>> Sample("red").key == Sample("red").key, Sample("red").key == Sample("blue").key
            (True, False)
        """
        return text_key("\0".join((self.text, *self.image_keys)))

    @property
    def _held(self) -> tuple[Image | DeferredImage, ...]:
        if self.image is None:
            return ()
        return self.image if isinstance(self.image, tuple) else (self.image,)


def text_key(text: str) -> str:
    """32 hexadecimal digits, equal for equal texts.

    Example:
        >>> len(text_key("red"))
        32
    """
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def image_key(image: Image | DeferredImage) -> str:
    """A key that is equal for equal images: that of a deferred image, else a hash of the pixels."""
    if isinstance(image, DeferredImage):
        return image.key
    head = f"{image.mode} {image.size} ".encode()
    palette = b"" if image.palette is None else image.palette.tobytes()
    return blake2b(head + palette + image.tobytes(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Pair:
    """A query with the target that it should find.

    Equal samples have equal ids: a right answer to a query must not count as its negative.

    Args:
        query: what is searched with.
        target: what should be found.
        negatives: hard negatives: samples that must not be found.
        subset: the name of the subset that the pair comes from.
        target_id: targets and hard negatives with the same id are the same sample, and none that equals the
            target is a negative; -1 equals no other.
        negative_ids: the ids of the hard negatives; empty if they equal no other.
        query_id: the targets of all queries with the same id are right for each of them; a target or hard
            negative with the id of a query is that query itself, and no negative of it; -1 equals no other.
        mask_pairs: if false, the targets of other pairs are negatives even if they are right answers, unless
            they are the query itself; hard negatives that are right answers are still excluded.
        origin: where the row of the pair is in the data set that made it.
    """

    query: Sample
    target: Sample
    negatives: tuple[Sample, ...] = ()
    subset: str = ""
    target_id: int = -1
    negative_ids: tuple[int, ...] = ()
    query_id: int = -1
    mask_pairs: bool = True
    origin: tuple[Any, ...] = ()


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        hint = " (`''` is a sample without a text)" if text is None else ""
        raise TypeError(f"the `text` of a `Sample` is a string, got {_kind(text)}{hint}")


def _to_image(image: Any, name: str) -> Image | DeferredImage:
    """A Pillow image, or a deferred one, from anything that holds one; `name` is what messages call it."""
    from PIL import Image

    if isinstance(image, Image.Image | DeferredImage):
        return image
    if isinstance(image, np.ndarray):
        grey, colours = image.ndim == 2, image.ndim == 3 and image.shape[2] in (3, 4)
        if image.dtype != np.uint8 or not (grey or colours) or not image.size:
            first = image.ndim == 3 and image.shape[0] in (3, 4) and not colours
            advice = "; its colour dimension comes first: pass `array.transpose(1, 2, 0)`" if first else ""
            raise ValueError(
                f"{name} is an array of {image.dtype} and of shape {image.shape}; expected 8-bit values "
                "(uint8) of shape (H, W), (H, W, 3) or (H, W, 4); pass several images as a list of arrays"
                f"{advice}"
            )
        return Image.fromarray(image)
    if isinstance(image, str | os.PathLike):
        return _open(image, name)
    raise TypeError(
        f"{name} of a `Sample` is {_kind(image)}; expected a Pillow image, an array of 8-bit values, the "
        "path of a file, or a list of these"
    )


def _open(path: str | os.PathLike[str], name: str) -> Image:
    from fanoise_lightning.pixels import open_image, upright_rgb

    try:
        with open_image(path) as file:
            image = upright_rgb(file)
            image.load()
            return image
    except FileNotFoundError:  # names the file
        raise
    except Exception as error:  # decoders raise almost anything on broken files
        cause = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} of a `Sample`, the file {os.fspath(path)!r}: {cause}") from error


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


Collate = Callable[[Sequence[Sample]], dict[str, Tensor]]
"""Turns B samples into the tensors that an encoder takes; picklable, without weights, run by workers."""
