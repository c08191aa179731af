"""A source of rows: what columns it has, what they hold, and how to read some of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from fanoise_lightning._checks import check_names
from fanoise_lightning.data.rows.columns import Columns, Kind, with_origin
from fanoise_lightning.data.rows.embedded import EmbeddedImages, KeyedBytes, holds_images
from fanoise_lightning.data.rows.tables import convert, is_text
from fanoise_lightning.pixels import FORMATS
from fanoise_lightning.sample import DeferredImage

__all__ = [
    "SAMPLE",
    "Source",
    "as_list",
    "has_value",
    "is_missing",
    "kind_of_values",
    "kinds_of_records",
    "kinds_of_tables",
    "read_from",
    "suffixes",
]

SAMPLE = 10_000  # rows at a time in which columns are looked for
_LISTS: dict[Kind | None, Kind] = {"text": "texts", "image": "images"}
_ENOUGH = 100  # values that say what a column holds
_SAYS_PICTURE = re.compile(
    r"(^|_)(image|img|picture|photo|file_?name|(image|img)_?(path|file))$", re.IGNORECASE
)

Read = Callable[[Columns], tuple[pa.Table, EmbeddedImages | None]]


@dataclass(frozen=True)
class Source:
    """Rows of any kind, not yet read.

    Args:
        name: what messages call it.
        kinds: what each column holds; ``None`` for neither texts nor pictures.
        read: reads columns as `read_table` does.
        folder: what paths of pictures are relative to.
        absolute: whether absolute paths of pictures are followed: only in rows that the user made.
    """

    name: str
    kinds: Mapping[str, Kind | None]
    read: Read
    folder: Path
    absolute: bool = True

    @property
    def short_name(self) -> str:
        """The name without folders and suffix."""
        return re.sub(r"(\.[a-z]+)?(\.gz)?$", "", Path(self.name).name, flags=re.IGNORECASE)

    def check(self, names: Iterable[str]) -> None:
        """Raise ValueError for a column that is missing, or holds neither texts nor pictures."""
        try:
            names = check_names(names, self.kinds, "column")
        except ValueError as error:
            raise ValueError(f"`{self.name}`: {error}") from None
        for name in names:
            if self.kinds[name] is None:
                raise ValueError(
                    f"`{self.name}`: column `{name}` holds neither texts nor pictures; turn it into texts, "
                    "or choose another column"
                )


def suffixes() -> tuple[str, ...]:
    """The suffixes of the image files that are read, in lower case."""
    Image.init()
    return tuple(suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS)


def kinds_of_tables(
    first: pa.Table, rest: Callable[[list[str]], Iterable[pa.Table]]
) -> dict[str, Kind | None]:
    """What columns hold, by their types and first values.

    Args:
        first: the first rows.
        rest: reads further rows of some columns: those that are empty in `first`, until each has a value.
    """
    kinds: dict[str, Kind | None] = {}
    empty = _add_kinds(kinds, first)
    for table in rest(empty) if empty else ():
        empty = _add_kinds(kinds, table.select([name for name in empty if name in table.column_names]))
        if not empty:
            break
    return kinds


def _add_kinds(kinds: dict[str, Kind | None], table: pa.Table) -> list[str]:
    """Add what the columns of a table hold, and return the names of those without a value."""
    empty = []
    for name in table.column_names:
        column = table[name]
        is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        if is_list:
            column = pc.list_flatten(column)
        kind: Kind | None = "image" if holds_images(column.type) else None
        if is_text(column.type):
            values = [value for value in column.to_pylist() if value]
            kind = kind_of_values(name, values)
            empty += [] if values else [name]
        kinds[name] = _LISTS.get(kind) if is_list else kind
    return empty


def kinds_of_records(records: Sequence[Mapping[str, Any]]) -> dict[str, Kind | None]:
    """What rows hold under each of their names."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: kind_of_values(name, (record.get(name) for record in records)) for name in names}


def kind_of_values(name: str, values: Iterable[Any]) -> Kind | None:
    """What a column holds, by its first values; ``None`` for neither texts nor pictures."""
    present = (value for value in values if not is_missing(value))
    first = next(present, None)
    if (items := as_list(first)) is not None:
        others = (item for value in present for item in as_list(value) or ())
        return _LISTS.get(kind_of_values(name, chain(items, others)))
    values = [first, *islice(present, _ENOUGH - 1)]
    if first is None:
        return "image" if _SAYS_PICTURE.search(name) else "text"
    if isinstance(first, str):
        texts = [value.lower() for value in values if isinstance(value, str) and value.strip()]
        are_paths = bool(texts) and all(text.endswith(suffixes()) and "\n" not in text for text in texts)
        return "image" if are_paths or _SAYS_PICTURE.search(name) else "text"
    is_picture = isinstance(first, bytes | Path | Image.Image | DeferredImage | np.ndarray)
    return "image" if is_picture or (isinstance(first, dict) and set(first) == {"bytes", "path"}) else None


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: ``None``, ``""``, NaN, or one of pandas' NA and NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return isinstance(value, str) and not value


def has_value(value: Any) -> bool:
    """Whether a value, or any of a list, is not missing."""
    return not all(map(is_missing, [value] if (items := as_list(value)) is None else items))


def as_list(value: Any) -> list[Any] | None:
    """The values of a list, also as the array that pandas makes of it; ``None`` for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        return list(value)
    return list(value) if isinstance(value, list | tuple) else None


def read_from(table: pa.Table, label: str, first: int = 0) -> Read:
    """Reads columns of a table in memory, whose rows messages count from `first`."""

    def read(columns: Columns) -> tuple[pa.Table, EmbeddedImages | None]:
        images: list[KeyedBytes] = []
        part = table.select([name for name in table.column_names if name in columns])
        rows = np.arange(first, first + len(table))
        converted = convert(with_origin(part, label, rows), columns, images)  # type: ignore[arg-type]
        return converted.combine_chunks(), EmbeddedImages(images) if images else None

    return read
