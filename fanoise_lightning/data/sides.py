"""A side of a pair: a text and the path of a picture, either of which may be empty, but not both.

Its key is the two together: the same caption with another picture is another side.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fanoise_lightning.data.columns import TEXT
from fanoise_lightning.data.embedded import KEY_PREFIX
from fanoise_lightning.data.names import spelled

__all__ = ["Side", "Sides", "identity", "list_negatives", "spell_paths", "unique_paths", "unique_sides"]

# backslashes, `.` and empty parts, and letters that may have several Unicode forms
_MAY_BE_RESPELLED = r"\\|//|/$|(^|/)\.(/|$)|[^\x00-\x7F]"


class Side(NamedTuple):
    """A text, and the path of a picture relative to the image root, or its key if the rows hold it.

    ``""`` for none. In a stream a row brings the bytes of its picture along, instead of a key.
    """

    text: str
    image: str | bytes


def identity(side: Side) -> int:
    """A number from 0 to 2**63 - 1: the same for the same text and picture, in every process and run.

    And in every role and subset: whatever a text means in each, an encoder embeds it once.

    Example:
        >>> identity(Side("cat", "")) == identity(Side("cat", ""))
        True
    """
    text, image = (part if isinstance(part, bytes) else part.encode() for part in side)
    digest = blake2b(text + b"\0" + image, digest_size=8).digest()
    return int.from_bytes(digest, "big") & (2**63 - 1)


@dataclass(frozen=True)
class Sides:
    """Many sides, as two Arrow arrays of equal length."""

    texts: pa.Array
    images: pa.Array

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Side:
        return Side(self.texts[index].as_py(), self.images[index].as_py())

    def take(self, index: NDArray[np.int64]) -> Sides:
        """The sides at `index`."""
        return Sides(self.texts.take(pa.array(index)), self.images.take(pa.array(index)))

    @property
    def keys(self) -> pa.Array:
        """A text for each, equal for equal sides."""
        return pc.binary_join_element_wise(self.texts, self.images, pa.scalar("\x00", TEXT))

    @property
    def has_picture(self) -> NDArray[np.bool_]:
        """Which of them have a picture."""
        return pc.not_equal(self.images, "").to_numpy(zero_copy_only=False)

    @property
    def is_empty(self) -> NDArray[np.bool_]:
        """Which of them have neither a text nor a picture."""
        blank = pc.equal(pc.utf8_trim_whitespace(self.texts), "").to_numpy(zero_copy_only=False)
        return blank & ~self.has_picture


def list_negatives(texts: list[str], images: list[str]) -> list[Side]:
    """The hard negatives of a row, without those that have neither text nor picture."""
    return [Side(text, image) for text, image in zip(texts, images) if text.strip() or image]


def spell_paths(images: pa.Array) -> pa.Array:
    """The paths in one spelling each, see `spelled`: what the reader opens as one file is one picture."""
    respell = pc.match_substring_regex(images, _MAY_BE_RESPELLED)
    paths = images.filter(respell).to_pylist()
    return pc.replace_with_mask(images, respell, pa.array(map(spelled, paths), TEXT)) if paths else images


def unique_paths(*images: pa.Array) -> pa.Array:
    """Each path once; no path at all and keys of embedded pictures are none."""
    paths = pc.unique(pa.concat_arrays(images))
    return paths.filter(pc.invert(pc.or_(pc.equal(paths, ""), pc.starts_with(paths, KEY_PREFIX))))


def unique_sides(*groups: Sides) -> tuple[Sides, NDArray[np.int64]]:
    """Each side once, and for all sides of the `groups` in a row the index of theirs.

    Sides without a picture come first, short texts first, so that batches waste little padding.
    """
    texts = pa.concat_arrays([group.texts for group in groups])
    images = pa.concat_arrays([group.images for group in groups])
    sides = Sides(texts, images)
    codes = sides.keys.dictionary_encode().indices.to_numpy().astype(np.int64)
    sides = sides.take(np.unique(codes, return_index=True)[1])
    order = np.lexsort((pc.utf8_length(sides.texts).to_numpy(), sides.has_picture))
    return sides.take(order), np.argsort(order)[codes]
