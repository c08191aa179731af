"""A row refers to each of its samples by a text and an image path; one of them may be empty.

Both together are the key of a reference: the same caption with another image is another reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from fanoise_lightning.data.rows.columns import TEXT
from fanoise_lightning.data.rows.embedded import KEY_PREFIX
from fanoise_lightning.data.rows.paths import spelled

__all__ = [
    "Reference",
    "References",
    "identity",
    "list_negatives",
    "number_references",
    "one_spelling",
    "spell_paths",
    "text_hashes",
    "unique_paths",
    "unique_references",
]

# backslashes, `.` and empty parts, and letters that may have several Unicode forms
_MAY_BE_RESPELLED = r"\\|//|/$|(^|/)\.(/|$)|[^\x00-\x7F]"

# white space at the ends, or other than single spaces; letters that may have several Unicode forms
_TEXT_MAY_BE_RESPELLED = r"^ | $|  |[^\x20-\x7E]"

_ODD = np.uint64(0x9E3779B97F4A7C15)  # so that a text and an image do not add up to the same, swapped
_BLOCK = 2**16  # texts that are Python objects at a time


class Reference(NamedTuple):
    """A text and an image, as a row names them.

    Args:
        text: ``""`` for none.
        image: the path relative to the image root, or the key of an embedded image, or in a stream its bytes;
            ``""`` for none.
    """

    text: str
    image: str | bytes


def identity(reference: Reference) -> int:
    """A number from 0 to 2**63 - 1 that is the same for the same text and image in every process and run.

    It does not depend on role or subset, nor on white space and the Unicode form of the text.

    Example:
        >>> identity(Reference("a cat", "")) == identity(Reference(" a  cat", ""))
        True
    """
    text, image = one_spelling(reference.text).encode(), reference.image
    image = image if isinstance(image, bytes) else image.encode()
    digest = blake2b(text + b"\0" + image, digest_size=8).digest()
    return int.from_bytes(digest, "big") & (2**63 - 1)


@dataclass(frozen=True)
class References:
    """Many references in columns.

    Args:
        texts: (N,), see `Reference.text`.
        images: (N,), paths or keys, see `Reference.image`.
    """

    texts: pa.Array
    images: pa.Array

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Reference:
        return Reference(self.texts[index].as_py(), self.images[index].as_py())

    def to_list(self) -> list[Reference]:
        """All references; several times as fast as one by one."""
        return list(map(Reference, self.texts.to_pylist(), self.images.to_pylist()))

    @classmethod
    def cat(cls, *groups: References) -> References:
        """All references of the groups."""
        return cls(
            *(pa.concat_arrays(columns) for columns in zip(*((one.texts, one.images) for one in groups)))
        )

    def take(self, index: NDArray[np.int64]) -> References:
        """The references at `index`."""
        return References(self.texts.take(pa.array(index)), self.images.take(pa.array(index)))

    @property
    def keys(self) -> pa.Array:
        """(N,) texts, equal for equal references."""
        return pc.binary_join_element_wise(self.texts, self.images, pa.scalar("\x00", TEXT))

    @property
    def has_image(self) -> NDArray[np.bool_]:
        """(N,), which references have an image."""
        return pc.not_equal(self.images, "").to_numpy(zero_copy_only=False)

    @property
    def is_empty(self) -> NDArray[np.bool_]:
        """(N,), which references have neither a text nor an image."""
        blank = pc.equal(pc.utf8_trim_whitespace(self.texts), "").to_numpy(zero_copy_only=False)
        return blank & ~self.has_image


def list_negatives(texts: list[str], images: list[str]) -> list[Reference]:
    """The hard negatives of a row, without those that have neither text nor image."""
    return [Reference(text, image) for text, image in zip(texts, images) if text.strip() or image]


def spell_paths(images: pa.Array) -> pa.Array:
    """Paths in one spelling each, see `spelled`: paths that open the same file are one image."""
    respell = pc.match_substring_regex(images, _MAY_BE_RESPELLED)
    paths = images.filter(respell).to_pylist()
    if not paths:
        return images
    return pc.replace_with_mask(images, respell, pa.array(map(spelled, paths), TEXT))


def unique_paths(*images: pa.Array) -> pa.Array:
    """Each path once, without ``""`` and the keys of embedded images."""
    paths = pc.unique(pa.concat_arrays(images))
    no_path = pc.or_(pc.equal(paths, ""), pc.starts_with(paths, KEY_PREFIX))
    return paths.filter(pc.invert(no_path))


def unique_references(*groups: References) -> tuple[References, NDArray[np.int64]]:
    """Each reference of the `groups` once, and where each of theirs is.

    Args:
        groups: N references together.

    Returns:
        The unique references, and the index among them of each of the N references, ``(N,)``. Those without
        an image come first, and short texts before long ones, so that batches waste little padding.
    """
    first, codes = _number(groups)
    texts, images = _columns(groups)
    return References(*(column.take(pa.array(first)).combine_chunks() for column in (texts, images))), codes


def number_references(*groups: References) -> NDArray[np.int64]:
    """Numbers like those of `unique_references`, equal for texts that differ in spelling alone.

    See `one_spelling`. No reference is copied.
    """
    return _number(groups, spell_texts)[1]


def one_spelling(text: str) -> str:
    r"""The text with one space for any white space between words and none around them, in Unicode's NFC.

    Example:
        >>> one_spelling(" a\u0301  red\nmug") == "\u00e1 red mug"
        True
    """
    return " ".join(normalize("NFC", text).split())


def spell_texts(texts: pa.Array) -> pa.Array:
    """Texts in one spelling each, see `one_spelling`."""
    respell = pc.match_substring_regex(texts, _TEXT_MAY_BE_RESPELLED)
    found = texts.filter(respell).to_pylist()
    if not found:
        return texts
    return pc.replace_with_mask(texts, respell, pa.array(map(one_spelling, found), TEXT))


def _columns(groups: Sequence[References]) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    texts = pa.chunked_array([group.texts for group in groups], TEXT)
    return texts, pa.chunked_array([group.images for group in groups], TEXT)


def _number(
    groups: Sequence[References], spell: Callable[[pa.Array], pa.Array] = lambda texts: texts
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each different reference is first, and the number of each reference among these."""
    texts, images = _columns(groups)
    keys = text_hashes(texts, spell)
    keys += _ODD * text_hashes(images)
    _, first, codes = np.unique(keys, return_index=True, return_inverse=True)
    del keys
    lengths = pc.utf8_length(texts).to_numpy()[first]
    has_image = pc.not_equal(images, "").to_numpy()[first]
    order = np.lexsort((first, lengths, has_image))
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return first[order], places[codes]


def text_hashes(
    column: pa.ChunkedArray, spell: Callable[[pa.Array], pa.Array] = lambda texts: texts
) -> NDArray[np.uint64]:
    """A hash of 64 bits for each text; 0 for ``""``. Arrow's dictionaries would copy all of the texts.

    Args:
        column: the texts.
        spell: what is hashed instead of some of them.
    """
    hashes = np.zeros(len(column), np.uint64)
    for start in range(0, len(column) if pc.any(pc.not_equal(column, "")).as_py() else 0, _BLOCK):
        block = spell(column.slice(start, _BLOCK).combine_chunks())
        texts = block.cast(pa.large_binary()).to_pylist()
        values = (xxh3_64_intdigest(text) if text else 0 for text in texts)
        hashes[start : start + len(texts)] = np.fromiter(values, np.uint64, len(texts))
    return hashes
