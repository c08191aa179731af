"""A folder of pictures whose texts are their names, their subfolders, or rows of a metadata file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from fanoise_lightning.data.rows.columns import TEXT
from fanoise_lightning.data.rows.tables import SHARDS
from fanoise_lightning.data.sources.files import open_file, open_shards
from fanoise_lightning.data.sources.source import Source, read_from, suffixes

__all__ = ["open_folder"]

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # the names of `datasets`' imagefolder


def open_folder(folder: Path) -> Source:
    """A folder of pictures, or of parquet files.

    With a ``metadata.csv``, ``.jsonl`` or ``.parquet``, which names each picture in ``file_name``, as
    `datasets` has them, its rows are the rows. Otherwise each picture is a row of ``id``, ``text`` and
    ``image``: its path, its text and its path. If all pictures are in subfolders, the names of these are the
    texts, as in torchvision's ImageFolder; else the names of the pictures. An underscore is a space.

    Raises:
        ValueError: if there are no pictures, or some in subfolders and some not.
        PermissionError: if a folder cannot be read.
    """
    for name in _METADATA:
        if (folder / name).is_file():
            return replace(open_file(folder / name), folder=folder)
    pictures = _find(folder)
    if not pictures and any(folder.glob(SHARDS)):
        return open_shards(folder)
    if not pictures:
        raise ValueError(
            f"`{folder}` holds no pictures ({', '.join(suffixes())}), no .parquet files and no {_METADATA[0]}"
        )
    texts = pa.array(_texts(folder, pictures), TEXT)
    paths = pa.array(pictures, TEXT)
    read = read_from(pa.table({"id": paths, "text": texts, "image": paths}), str(folder))
    return Source(str(folder), {"id": "text", "text": "text", "image": "image"}, read, folder)


def _find(folder: Path) -> list[str]:
    """The pictures in a folder and its subfolders, relative to it, sorted; none that is hidden."""
    found, ends = [], suffixes()
    for here, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(here).relative_to(folder)
        found += [
            (inside / name).as_posix()
            for name in names
            if name.lower().endswith(ends) and not name.startswith(".")
        ]
    return sorted(found)


def _refuse(error: OSError) -> NoReturn:
    advice = f"cannot be listed ({error.strerror}); give yourself the right to read it"
    raise type(error)(error.errno, advice, error.filename)


def _texts(folder: Path, pictures: list[str]) -> list[str]:
    parts = [picture.split("/") for picture in pictures]
    above = os.path.commonpath([os.path.dirname(picture) for picture in pictures]).split("/")
    shared = len([part for part in above if part])  # images/, if all are in there
    inner = [each for each in parts if len(each) > shared + 1]
    if not inner:
        return [Path(each[-1]).stem.replace("_", " ") for each in parts]
    if len(inner) < len(parts):
        outer = next(each for each in parts if len(each) == shared + 1)
        raise ValueError(
            f"`{folder}` has pictures in subfolders (`{'/'.join(inner[0])}`) and others beside these "
            f"(`{'/'.join(outer)}`): the texts are either the names of subfolders or those of the pictures; "
            "move the others, or write a metadata.csv with the columns file_name and text"
        )
    return [each[shared].replace("_", " ") for each in parts]
