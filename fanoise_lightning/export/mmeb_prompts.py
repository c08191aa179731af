"""The instructions of MMEB's training subsets, as prompts of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanoise_lightning.evaluation.mmeb import CATALOG

__all__ = ["mmeb_prompts"]

_PICTURE = "<|image_1|> "  # where a picture goes without it, too


def mmeb_prompts(data: Mapping[str, Any] | None, pictures: bool) -> dict[str, str]:
    """The instructions of the queries that an encoder was trained on, by the subset's evaluation name.

    Args:
        data: what a data module says of its training rows, see ``Facts``.
        pictures: whether a reader takes a prompt for a picture; if not, only queries that are texts have one.

    Returns:
        None but for subsets of MMEB: other rows have no instruction that is known apart from their text.

    Example:
        >>> mmeb_prompts({"subsets": {"MSCOCO_t2i": 100_000, "NIGHTS": 16_000}}, pictures=False)
        {'MSCOCO_t2i': 'Find me an everyday image that matches the given caption: '}
    """
    trained = {} if data is None else data["subsets"]
    return {
        entry.name: entry.instruction.removeprefix(_PICTURE)
        for entry in CATALOG.values()
        if entry.train_name in trained and (pictures or entry.query == "T")
    }
