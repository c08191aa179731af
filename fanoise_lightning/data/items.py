"""The rows of a catalogue: one text, picture or both each, with an id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.cleaning import Cleaner
from fanoise_lightning.data.rows.columns import TEXT, Columns, Kind, where
from fanoise_lightning.data.rows.embedded import EmbeddedImages
from fanoise_lightning.data.rows.references import References, text_hashes, unique_paths
from fanoise_lightning.data.sources.any_source import open_source
from fanoise_lightning.data.sources.roles import choose_item
from fanoise_lightning.data.sources.source import Source
from fanoise_lightning.sample import Sample

__all__ = ["Items", "read_items"]


@dataclass(frozen=True)
class Items:
    """N items in columns; can be pickled and forked.

    Args:
        source: the name of what they were read from.
        ids: (N,) texts, each once.
        references: of the N items: text (``""`` for none) and path or key of the picture (``""`` for none).
        table: (N,) rows: the file and row of each item.
        root: what the paths are relative to.
        embedded: the pictures that came as bytes, under the keys that replace their paths.
        empty: ``id`` and ``reason`` of each row that is no item, as it has neither text nor picture.
    """

    source: str
    ids: pa.Array
    references: References
    table: pa.Table
    root: ImageRoot | None = None
    embedded: EmbeddedImages | None = None
    empty: Sequence[dict[str, str]] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """The item with its picture opened.

        Raises:
            ImageError: if it cannot be opened; names it and the cause.
        """
        return self.store.sample(self.references[index])

    @cached_property
    def store(self) -> ImageStore:
        """Opens the pictures."""
        return ImageStore(self.root, () if self.embedded is None else (self.embedded,))

    def where(self, index: int) -> str:
        """File and row of an item, for messages."""
        return where(self.table, index)


def read_items(
    source: Any,
    text: str | None = None,
    image: str | None = None,
    id: str | None = None,
    image_root: str | Path | None = None,
) -> Items:
    """Read the items of a catalogue from any source of rows.

    A row with neither a text nor a picture is no item, but listed, with a warning. Pictures are opened later;
    only a sample of their paths is looked for.

    Args:
        source: see `open_source`.
        text: the column of texts.
        image: the column of pictures: Pillow images, arrays, bytes, `datasets.Image`, or paths. If neither
            `text` nor `image` is given, both are guessed, and the guess is reported: the only column of
            pictures, or else the column of texts.
        id: the column of ids; by default the one that is called so, or else the numbers of the rows.
        image_root: the folder or zip archive that paths are relative to; by default the folder of `source`.

    Raises:
        FileNotFoundError: if `source` does not exist, or none of the pictures.
        ValueError: for columns that are missing or unclear, rows that cannot be read, an id that is missing
            or given twice, or no usable row; names the rows.

    Example:
        >>> items = read_items(["a red mug", "a blue mug"])
        >>> len(items), items.ids.to_pylist(), items[0].text
        (2, ['0', '1'], 'a red mug')
    """
    opened = open_source(source)
    side, id = choose_item(opened, text, image, id)
    kinds: tuple[tuple[str | None, Kind], ...] = ((side.text, "text"), (side.image, "image"))
    columns: Columns = {name: kind for name, kind in kinds if name is not None}
    table, embedded = opened.read({**columns, **({} if id is None or id in columns else {id: "id"})})
    free = pa.default_memory_pool().release_unused  # or Arrow keeps the space of copies
    free()
    clean = Cleaner(opened.short_name, table, opened.absolute)
    references = clean.references(side.text, side.image)
    free()
    kept = clean.keep(references.is_empty)
    ids = _check_ids(table, id)
    empty: list[dict[str, str]] = []
    if len(kept) < len(table):
        for row in np.flatnonzero(references.is_empty).tolist():
            reason = f"{where(table, row)}: it has neither text nor picture"
            empty.append({"id": ids[row].as_py(), "reason": reason})
        rows = pa.array(kept)
        references, ids, table = references.take(kept), ids.take(rows), table.take(rows)
    root = find_root(opened, image_root, unique_paths(references.images))
    del clean
    table = table.select(["file", "row"])
    free()
    return Items(opened.name, ids, references, table, root, embedded, empty)


def find_root(source: Source, image_root: str | Path | None, paths: pa.Array) -> ImageRoot | None:
    """What the paths of a source are relative to, after a look for some of them; ``None`` without paths."""
    if not len(paths):
        return None
    root = ImageRoot(source.folder if image_root is None else image_root, absolute=source.absolute)
    root.check_sample(paths, source.name)
    root.prepare(paths, source.name)
    return root


def _check_ids(table: pa.Table, name: str | None) -> pa.Array:
    """The ids, each once."""
    if name is None:
        return pa.array(np.arange(len(table))).cast(TEXT)
    ids = table[name].combine_chunks()
    if (missing := pc.index(ids, "").as_py()) >= 0:
        raise ValueError(f"{where(table, missing)}: column `{name}` has no id; give each row one")
    hashes = np.sort(text_hashes(table[name]))  # a dictionary of all ids would be large
    if not (hashes[1:] == hashes[:-1]).any():
        return ids
    numbers = ids.dictionary_encode().indices.to_numpy()
    first = np.unique(numbers, return_index=True)[1]
    if len(first) < len(ids):
        again = int(np.setdiff1d(np.arange(len(ids)), first)[0])
        earlier = int(first[numbers[again]])
        raise ValueError(
            f"id {ids[again].as_py()!r} is given twice, in {where(table, earlier)} and in "
            f"{where(table, again)}; make the ids unique, or name another column with `id`"
        )
    return ids
