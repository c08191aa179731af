"""A folder of pictures whose texts are their names, their subfolders, or rows of a metadata file."""

from __future__ import annotations

import os
import posixpath
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

import pyarrow as pa
from lightning.fabric.utilities.rank_zero import rank_zero_warn

from fanoise_lightning.data.rows.columns import TEXT
from fanoise_lightning.data.rows.tables import SHARDS
from fanoise_lightning.data.sources.files import open_file, open_shards
from fanoise_lightning.data.sources.source import Source, read_from, suffixes

__all__ = ["open_folder"]

_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # the names of `datasets`' imagefolder


def open_folder(folder: Path) -> Source:
    """A folder of pictures, or of parquet files.

    With a ``metadata.csv``, ``.jsonl`` or ``.parquet``, which names each picture in ``file_name``, as
    `datasets` has them, its rows are the rows. Otherwise each picture is a row of ``id``, ``text`` and
    ``image``: its path, its text and its path. The text is in a ``.txt`` file of the same name beside each
    picture. Without these, if all pictures are in subfolders, the names of these are the texts, as in
    torchvision's ImageFolder; else the names of the pictures. An underscore is a space.

    Raises:
        ValueError: if there are no pictures, some in subfolders and some not, a text beside some alone,
            parquet files too, or if the subfolders are splits.
        PermissionError: if a folder cannot be read.
    """
    for name in _METADATA:
        if (folder / name).is_file():
            return replace(open_file(folder / name), folder=folder)
    pictures = _find(folder, suffixes())
    shard = next(iter(sorted(folder.glob(SHARDS))), None)
    if pictures and shard is not None:
        raise ValueError(
            f"`{folder}` holds pictures (`{pictures[0]}`) and rows (`{shard.name}`): pass the rows alone, as "
            f"`{shard}` with `image_root`, or a folder of pictures without .parquet files"
        )
    if shard is not None:
        return open_shards(folder)
    if not pictures:
        raise ValueError(
            f"`{folder}` holds no pictures ({', '.join(suffixes())}), no .parquet files and no {_METADATA[0]}"
        )
    texts = pa.array(_read_texts(folder, pictures) or _texts(folder, pictures), TEXT)
    paths = pa.array(pictures, TEXT)
    read = read_from(pa.table({"id": paths, "text": texts, "image": paths}), str(folder))
    return Source(str(folder), {"id": "text", "text": "text", "image": "image"}, read, folder)


def _find(folder: Path, ends: tuple[str, ...]) -> list[str]:
    """The files with these ends in a folder and its subfolders, relative to it, sorted; none is hidden."""
    found = []
    for here, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(os.path.join(here, name)):
                rank_zero_warn(
                    f"`{os.path.join(here, name)}` is a link to a folder, which is not followed: move the "
                    "pictures here, or name them in a metadata.csv"
                )
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


def _read_texts(folder: Path, pictures: list[str]) -> list[str] | None:
    """The texts in the files beside the pictures; ``None`` if there are none."""
    there = set(_find(folder, (".txt",)))
    wanted = [str(PurePosixPath(picture).with_suffix(".txt")) for picture in pictures]
    if there.isdisjoint(wanted):
        return None
    if (missing := next((file for file in wanted if file not in there), None)) is not None:
        raise ValueError(
            f"`{folder}`: other pictures have a text beside them, but `{missing}` does not exist"
        )
    try:
        return [(folder / (file := name)).read_text("utf-8-sig").strip() for name in wanted]
    except UnicodeDecodeError as error:
        raise ValueError(f"`{folder / file}` is not in UTF-8 ({error}): save it as UTF-8") from error


def _texts(folder: Path, pictures: list[str]) -> list[str]:
    parts = [picture.split("/") for picture in pictures]
    above = posixpath.commonpath([posixpath.dirname(picture) for picture in pictures]).split("/")
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
    names = dict.fromkeys(each[shared] for each in parts)
    if all(name.lower() in _SPLITS for name in names):
        raise ValueError(
            f"`{folder}` has the pictures of {' and '.join(names)} in subfolders: pass one of these as "
            "`source`, and another as `val`"
        )
    return [each[shared].replace("_", " ") for each in parts]
