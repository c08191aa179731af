"""Paths that open the same file: absolute and relative ones, with and without ``images/``, symbolic links."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fanoise_lightning.data.images.roots import ImageRoot

__all__ = ["name_files", "other_paths"]

_Listing = tuple[str, set[str], set[str]]  # a folder without links, its files, and its other entries


def other_paths(root: ImageRoot, paths: Sequence[str]) -> dict[str, str]:
    """The paths that open the same file as an earlier one, and that earlier one.

    Args:
        root: what the paths are relative to.
        paths: different ones.
    """
    first: dict[str, str] = {}
    pairs = ((path, first.setdefault(name, path)) for path, name in zip(paths, name_files(root, paths)))
    return {path: earlier for path, earlier in pairs if path is not earlier}


def name_files(root: ImageRoot, paths: Sequence[str]) -> list[str]:
    """The file that each path opens, see `ImageRoot.file_of`, at the cost of a listing of each folder."""
    folders: dict[str, list[_Listing]] = {}
    names = []
    for path in paths:
        head, _, name = path.rpartition("/")
        if (listings := folders.get(head)) is None:
            listings = folders[head] = [_list(os.path.dirname(file)) for _, file in root.places(f"{head}/x")]
        names.append(_find(listings, name) or root.file_of(path))
    return names


def _find(listings: Sequence[_Listing], name: str) -> str | None:
    """The file of this name in the first folder that has it; ``None`` for a link, or if it is in none."""
    for folder, files, others in listings:
        if name in files:
            return f"{folder}/{name}"
        if name in others:
            return None
    return None


def _list(folder: str) -> _Listing:
    files: set[str] = set()
    others: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (files if entry.is_file(follow_symlinks=False) else others).add(entry.name)
    except OSError:  # no folder, or not readable
        pass
    return os.path.realpath(folder), files, others
