"""The one record type between data and encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Collate", "Pair", "Sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A text, a picture, or both: what an encoder turns into one embedding.

    Instructions and columns are resolved before a sample is made. Where a text and pictures come together,
    the pictures stand before the text.

    Args:
        text: the text; ``""`` for none.
        image: the picture, decoded to RGB, or a tuple of several; ``None`` for none.

    Raises:
        ValueError: if there is neither a text nor a picture.

    Example:
        >>> Sample(text="a red apple").images
        ()
    """

    text: str = ""
    image: Image | tuple[Image, ...] | None = None

    def __post_init__(self) -> None:
        if not self.text and not self.images:
            raise ValueError("`Sample` needs a text, a picture or both, got neither")

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures: none, one or several."""
        if self.image is None:
            return ()
        return self.image if isinstance(self.image, tuple) else (self.image,)


@dataclass(frozen=True, slots=True)
class Pair:
    """A query with the target that it should find.

    Args:
        query: what is searched with.
        target: what should be found.
        negatives: hard negatives: samples that must not be found.
        subset: the name of the subset that the pair comes from.
        target_id: pairs of a batch with the same number have the same target, and are not each other's
            negatives; -1 is like no other.
    """

    query: Sample
    target: Sample
    negatives: tuple[Sample, ...] = ()
    subset: str = ""
    target_id: int = -1


Collate = Callable[[Sequence[Sample]], dict[str, Tensor]]
"""Turns B samples into the tensors that an encoder takes: picklable, run by workers, without weights."""
