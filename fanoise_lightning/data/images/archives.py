"""Zip archives read in place, by an index of a few arrays that forked workers share.

`zipfile` keeps half a kilobyte of Python objects per member in each process: a gigabyte a worker for the two
million images of MMEB. Here it reads the directory once, and 32 bytes per member are kept.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fanoise_lightning.data.images.decode import ImageError, check_size
from fanoise_lightning.data.rows.paths import ambiguous, folded, same_letters

__all__ = ["Archive"]

_ENTRY = np.dtype(
    [
        ("offset", "<i8"),
        ("packed", "<u4"),
        ("size", "<u4"),
        ("crc", "<u4"),
        ("method", "<u2"),
        ("flags", "<u2"),
    ]
)
_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, ..., lengths of its name and extra fields
_ENCRYPTED, _UTF8 = 0x1, 0x800


class Archive:
    """The files in a zip archive, by name.

    A name that differs from a file's only in capitals, Unicode normal form or slashes finds the file too.

    No file is kept open, so the object can be pickled, forked and used by threads.

    Args:
        path: the archive.

    Attributes:
        example: the name of one of its files, for messages; ``""`` if it has none.

    Raises:
        ValueError: if it is not a zip archive, or not a complete one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            # the directory is at the end: a truncated download has none
            raise ValueError(f"`{path}` is not a zip archive, or is truncated ({error})") from error
        names = [_name(member) for member in members]
        keys = np.array([_key(folded(name)) for name in names], np.uint64)
        if len(np.unique(keys)) != len({folded(name) for name in names}):
            raise ValueError(f"two names in `{path}` have the same 64-bit hash: unpack it")
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._entries = np.array([_entry(member) for member in members], _ENTRY)[order]
        self._variants = _variants(self._keys, [names[at] for at in order])
        self.example = names[0] if names else ""

    def __contains__(self, name: str) -> bool:
        return self._place(name) is not None or (not name.isascii() and self._place(_utf8(name)) is not None)

    def _place(self, name: str) -> int | None:
        """The index of a file with this name, or one that differs in spelling alone."""
        key = np.uint64(_key(folded(name)))
        # of several files with one name, the last is valid
        at = int(self._keys.searchsorted(key, side="right")) - 1
        return at if at >= 0 and self._keys[at] == key else None

    def _find(self, name: str) -> np.void | None:
        for spelling in (name, _utf8(name)):
            if (at := self._place(spelling)) is not None:
                variants = self._variants.get(int(self._keys[at]))
                return self._entries[at if variants is None else _choose(spelling, variants)]
        return None

    def offset(self, name: str) -> int:
        """Where a file begins, which no other file does; -1 for none.

        Raises:
            ImageError: if several files differ from the name in spelling alone.
        """
        entry = self._find(name)
        return -1 if entry is None else int(entry.item()[0])

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            ImageError: if it is missing, or several files differ from the name in spelling alone; if it is
                encrypted, compressed by an unknown method, too large, or broken.
            OSError: if the archive cannot be read.
        """
        if (entry := self._find(name)) is None:
            raise ImageError("no such file in the archive")
        offset, packed, size, crc, method, flags = entry.item()
        if flags & _ENCRYPTED:
            raise ImageError("it is encrypted; pack the archive without a password")
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ImageError(f"its compression method {method} is not supported; pack it stored or deflated")
        check_size(max(size, packed))
        with open(self.path, "rb") as file:
            file.seek(offset)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or not header.startswith(b"PK\3\4"):
                raise ImageError("the archive is broken, there is no member where its directory says")
            _, *lengths = _HEADER.unpack(header)
            file.seek(sum(lengths), 1)
            data = file.read(packed)
        if method == zipfile.ZIP_DEFLATED:
            try:  # bounded, because a directory can lie about the size
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise ImageError(f"the archive is broken, it cannot be unpacked: {error}") from error
        if len(data) != size or zlib.crc32(data) != crc:
            raise ImageError("the archive is broken, size or checksum (CRC) of the member are wrong")
        return data


def _name(member: zipfile.ZipInfo) -> str:
    """The name; macOS writes UTF-8 without declaring it, and `zipfile` then takes it for code page 437."""
    return member.filename if member.flag_bits & _UTF8 else _utf8(member.filename)


def _utf8(name: str) -> str:
    """The name with its bytes read as UTF-8 instead of code page 437; unchanged if they are not UTF-8."""
    try:
        return name if name.isascii() else name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _variants(keys: NDArray[np.uint64], names: Sequence[str]) -> dict[int, dict[str, int]]:
    """Names that differ in spelling alone, and the index of the last file of each name, by their key."""
    found: dict[int, dict[str, int]] = {}
    for first in np.flatnonzero(keys[1:] == keys[:-1]).tolist():
        for index in (first, first + 1):
            found.setdefault(int(keys[first]), {})[names[index]] = index
    return {key: variants for key, variants in found.items() if len(variants) > 1}


def _choose(name: str, variants: Mapping[str, int]) -> int:
    if name in variants:
        return variants[name]
    if len(same := same_letters(name, variants)) == 1:
        return variants[same[0]]
    raise ImageError(ambiguous(variants))


def _key(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _entry(member: zipfile.ZipInfo) -> tuple[int, int, int, int, int, int]:
    most = 2**32 - 1  # larger than any image that is read
    packed, size = min(member.compress_size, most), min(member.file_size, most)
    return (member.header_offset, packed, size, member.CRC, member.compress_type, member.flag_bits)
