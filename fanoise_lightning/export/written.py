"""What a writer says about the folder that it wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["READERS", "Written"]

READERS = {
    "transformers": "transformers",
    "sentence-transformers": "sentence_transformers",
    "open_clip": "open_clip",
    "onnxruntime": "onnxruntime",
}
"""The libraries that can read a folder, and the names of their packages."""


@dataclass
class Written:
    """A folder's facts.

    Args:
        family: the usual name of the model's family.
        readers: the libraries that read it, of `READERS`.
        reading: what a reader must know that is not in the folder, for the scripts in ``readers``.
        several_images: whether a row may have several pictures.
        special_token: the name of a special token that the encoder reads as text; ``""`` if it would act.
        cannot: for a library, the kinds of rows that it cannot read alike, and why.
        rotation: (D, D), which sentence-transformers multiplies its vectors by.
        steps: what users have to do themselves before they give a row to any of the libraries.
    """

    family: str
    readers: tuple[str, ...]
    reading: dict[str, Any]
    several_images: bool = False
    special_token: str = ""
    rotation: Tensor | None = None
    cannot: dict[str, dict[str, str]] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.add_limit("palette picture", "it is resized before it becomes RGB: convert it first")
        self.add_limit("transparent picture", "its transparency is dropped: put it on white first")
        self.add_limit("turned picture", "its EXIF orientation is ignored: turn it first")
        if self.special_token:
            self.add_limit("name of a special token", "it acts as that token: remove it from the text")
        if "sentence-transformers" in self.readers:
            why = 'a picture\'s file or web address as a text is opened as that picture: give {"text": ...}'
            self.add_limit("name of a picture file", why, "sentence-transformers")

    def add_limit(self, kind: str, why: str, *readers: str) -> None:
        """Note that libraries, by default all, cannot read a kind of row as the encoder does."""
        for reader in readers or self.readers:
            self.cannot.setdefault(reader, {})[kind] = why
