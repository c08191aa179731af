"""File names that are spelled differently in rows and on disks, by macOS, Windows and Linux."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Collection, Iterable

__all__ = ["ABSOLUTE", "CLIMBS", "LEAVES_ROOT", "ambiguous", "folded", "same_letters", "spelled"]

# absolute, a drive letter, or a `..` between separators of either kind; RE2 and `re` both read it
CLIMBS = r"(^|[/\\])\.\.([/\\]|$)|\x00"
ABSOLUTE = r"^[/\\]|^[A-Za-z]:"
LEAVES_ROOT = rf"{ABSOLUTE}|{CLIMBS}"


def folded(path: str) -> str:
    r"""The same for all names that differ only in capitals, Unicode normal form, kind of slash, or ``./``.

    Example:
        >>> folded("./Train\\A.JPG")
        'train/a.jpg'
    """
    if path.isascii():
        path = path.lower()
    else:
        path = unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())
    return posixpath.normpath(path.replace("\\", "/"))


def spelled(path: str) -> str:
    r"""One spelling of a path: forward slashes, no empty parts and no ``.``, letters in Unicode's NFC.

    Example:
        >>> spelled(".\\Train//A.JPG")
        'Train/A.JPG'
    """
    return posixpath.normpath(unicodedata.normalize("NFC", path.replace("\\", "/")))


def same_letters(path: str, names: Iterable[str]) -> list[str]:
    """Those `names` that differ from `path` in Unicode normal form or slashes alone, and not in capitals."""
    return [name for name in names if spelled(name) == spelled(path)]


def ambiguous(names: Collection[str]) -> str:
    """The message about a name that differs from several `names` of files in spelling alone.

    Names are escaped, because two normal forms of a letter look the same.
    """
    listed = " and ".join(ascii(name) for name in sorted(names))
    return (
        f"no file has exactly this name, and {len(names)} have it in other capitals or another Unicode form: "
        f"{listed}; write one of these names in the row"
    )
