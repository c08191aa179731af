"""What the paths in the rows are relative to: folders of images, or archives read without unpacking."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fanoise_lightning._log import report
from fanoise_lightning.data.images.archives import Archive
from fanoise_lightning.data.images.decode import ImageError, check_size
from fanoise_lightning.data.rows.paths import ABSOLUTE, CLIMBS, LEAVES_ROOT, ambiguous, folded, same_letters

__all__ = ["ImageRoot", "archive_names", "first_paths"]

SAMPLE = 1000  # paths that are looked for before the first batch
_OPEN_FILES = "/proc/self/fd"

# the X of `images/X/rest` and of `X/rest`: an archive may be named after it
_GROUP = r"^(?:images/)?(?:([^/]*)/)?.*$"


def archive_names(path: str) -> tuple[str, ...]:
    """The archives below a root that may hold an image, the likeliest first.

    Example:
        >>> archive_names("images/A-OKVQA/Train/1.jpg")
        ('images_zip/A-OKVQA.zip', 'images.zip')
    """
    group, slash, _ = path.replace("\\", "/").removeprefix("images/").partition("/")
    return (f"images_zip/{group}.zip", "images.zip") if group and slash else ("images.zip",)


def first_paths(paths: pa.Array) -> dict[str, str]:
    """The first path of each archive X in `archive_names`, by X; ``""`` stands for no X."""
    slashed = pc.replace_substring(paths, "\\", "/")
    groups = pc.replace_substring_regex(slashed, _GROUP, r"\1").dictionary_encode()
    rows = np.unique(groups.indices.to_numpy(), return_index=True)[1]
    return dict(zip(groups.dictionary.to_pylist(), paths.take(pa.array(rows)).to_pylist()))


class ImageRoot:
    """The folder or archive that image paths are relative to.

    Can be pickled and forked; forked processes share the archives opened before.

    In a folder, a path is looked up as it is and with or without ``images/`` in front, since MMEB's
    repositories unpack there. If it is not unpacked, it is looked up in the folder's archives:
    ``images_zip/X.zip`` (for ``images/X/...``) and ``images.zip``, which are opened when they are needed. If
    no file has exactly this name, one that differs only in capitals, Unicode normal form (macOS) or
    backslashes is taken, provided that there is only one.

    Args:
        path: a folder or a zip archive; ``~`` is the user's home.
        fetch: for messages: the command that fetches an archive of the folder, with ``{archive}`` for its
            name.
        absolute: whether absolute paths are followed, anywhere on this machine.

    Raises:
        FileNotFoundError: if `path` is neither.
        ValueError: if it is a file, but not a complete zip archive.

    Example:
        >>> ImageStore(ImageRoot("MMEB-train")).open("images/A-OKVQA/Train/1.jpg")  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, fetch: str = "", absolute: bool = False) -> None:
        self.path, self.fetch, self.absolute = Path(path).expanduser().resolve(), fetch, absolute
        self._archives: dict[str, Archive | None] = {}
        self._is_folder = self.path.is_dir()
        if not self._is_folder:
            if not self.path.is_file():
                raise FileNotFoundError(f"image root `{path}` is neither a folder nor a zip archive")
            self._archives[""] = self._open(self.path, "")
        # users keep many images on another disk and link to it: what is behind that link is inside the root
        # texts: joining paths takes longer than opening a file
        self._folder, self._unpacked = str(self.path), os.path.realpath(self.path / "images")

    def prepare(self, paths: pa.Array, subset: str) -> None:
        """Open the archives that `paths` need, before processes are forked that will share them.

        Args:
            paths: of the images of a subset.
            subset: its name, for messages.

        Raises:
            FileNotFoundError: if the images are neither unpacked nor in an archive.
            ValueError: if an archive cannot be read.
        """
        relative = paths.filter(pc.invert(pc.match_substring_regex(paths, ABSOLUTE)))
        for number, (group, path) in enumerate(first_paths(relative).items()):
            is_there = self._file(path) or self._needed(path) or self._has_folder(group) or path in self
            if number == 0 and not is_there:  # later ones may be stray paths, which count as broken images
                raise FileNotFoundError(
                    f"subset `{subset}`: its images (the first: `{path}`) are not in `{self.path}`, "
                    + self._missing(path)
                )

    def check_sample(self, paths: pa.Array, subset: str) -> None:
        """Look for some of the `paths`, evenly spread, before the first batch does.

        Raises:
            FileNotFoundError: if there is none of them.
        """
        rows = np.unique(np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).astype(int))
        chosen = paths.take(pa.array(rows)).to_pylist()
        missing = [path for path in chosen if path not in self]
        if not missing:
            return
        some = "" if len(chosen) == len(paths) else f"a sample of {len(chosen)} of "
        first = re.sub("^([a-z]{2,}:)/", r"\1//", missing[0])  # an address, of which a path has one slash
        found = (
            f"`{subset}`: {len(chosen) - len(missing)} of {some}{len(paths)} pictures found under "
            f"`{self.path}`; the first that is missing: `{first}`"
        )
        if first != missing[0]:
            raise FileNotFoundError(f"{found}; addresses are not opened: download the pictures first")
        if len(missing) == len(chosen):
            advice = "pass the folder that they are relative to as `image_root`"
            if not Path(missing[0]).suffix:
                advice += ", and put the suffix of the files (.jpg) into the rows"
            raise FileNotFoundError(f"{found}; {advice}")
        report(found)  # they are counted when they are opened, see `max_skipped`

    def __contains__(self, path: str) -> bool:
        path = self._checked(path)
        if self._is_absolute(path):
            return self._absolute(path) is not None
        return any(find(path) is not None for find in (self._file, self._member, self._similar))

    def read(self, path: str) -> bytes:
        """The bytes of an image.

        Raises:
            ImageError: if there is none at `path`, or several in other spellings; if it is outside the root,
                or cannot be read.
            ValueError: if an archive that was not prepared cannot be read.
        """
        path = self._checked(path)
        if self._is_absolute(path):
            if (found := self._absolute(path)) is None:
                raise ImageError("no such file")
            return _read_file(os.path.dirname(os.path.realpath(found)), found)
        if (file := self._file(path)) is not None:
            return _read_file(*file)
        if (member := self._member(path)) is not None:
            archive, name = member
            return archive.read(name)
        if (file := self._similar(path)) is not None:
            return _read_file(*file)
        if archives := self._needed(path):
            found = ", ".join(
                f"`{archive.path.name}` (which has `{archive.example}`)" for archive in archives
            )
            raise ImageError(f"no such file, unpacked or in {found}")
        raise ImageError(f"no such file, {self._missing(path)}")

    def file_of(self, path: str) -> str:
        """The file that a path opens, behind symbolic links: the same for all paths that open it.

        A file in an archive has a name of its own, and so has a path that opens nothing.
        """
        try:
            path = self._checked(path)
            if self._is_absolute(path):
                return os.path.realpath(self._absolute(path) or path)
            if (file := self._file(path)) is not None:
                return os.path.realpath(file[1])
            if (member := self._member(path)) is not None:
                return f"{member[0].path}\0{member[0].offset(member[1])}"
            if (file := self._similar(path)) is not None:
                return os.path.realpath(file[1])
        except ImageError:  # told when it is opened
            pass
        return f"{self.path}\0{path}"

    def places(self, path: str) -> Iterator[tuple[str, str]]:
        """Where the file of a path may be: folders that the path must not leave, and the files there."""
        if self._is_absolute(path):
            yield os.path.dirname(path), path
        elif self._is_folder:
            for base, rest in map(self._base, _spellings(path)):
                yield base, os.path.join(base, rest)

    def _checked(self, path: str) -> str:
        if re.search(CLIMBS if self.absolute else LEAVES_ROOT, path):
            raise ImageError("the path leaves the image root")
        return posixpath.normpath(path)

    def _is_absolute(self, path: str) -> bool:
        return self.absolute and re.match(ABSOLUTE, path) is not None

    def _absolute(self, path: str) -> str | None:
        """The file at an absolute path; rows are in NFC, macOS's files in NFD."""
        return next((name for form in ("NFC", "NFD") if os.path.isfile(name := normalize(form, path))), None)

    def _file(self, path: str) -> tuple[str, str] | None:
        """The folder that the path must not leave, and the file, if there is one with exactly this name."""
        # rows are in NFC: find files in macOS's NFD without listing their folder
        for name in (path,) if path.isascii() else (path, normalize("NFD", path)):
            for place in self.places(name):
                if os.path.isfile(place[1]):
                    return place
        return None

    def _base(self, name: str) -> tuple[str, str]:
        """The folder that a path must not leave, and the path from there."""
        if name.startswith("images/"):
            return self._unpacked, name.removeprefix("images/")
        return self._folder, name

    def _similar(self, path: str) -> tuple[str, str] | None:
        """Like `_file`, for a file whose name differs in spelling alone.

        Raises:
            ImageError: if there are several.
        """
        if not self._is_folder:
            return None
        found: dict[str, str] = {}
        for name in _spellings(folded(path)):
            # without a folder of this very name, there may be one such as Images/
            base, rest = self._base(name) if os.path.isdir(self._unpacked) else (self._folder, name)
            found |= dict.fromkeys(_search(base, rest), base)
        if len(found) > 1:
            same = [name for spelling in _spellings(path) for name in same_letters(spelling, found)]
            found = {name: found[name] for name in same} or found
        if len(found) > 1:
            raise ImageError(ambiguous(found))
        for name, base in found.items():
            return base, os.path.join(base, name)
        return None

    def _member(self, path: str) -> tuple[Archive, str] | None:
        """The archive that has the image, and its name there."""
        for archive in self._needed(path):
            for spelling in (path, folded(path)):
                for name in _spellings(spelling):
                    if name in archive:
                        return archive, name
        return None

    def _has_folder(self, group: str) -> bool:
        """Whether there is a folder of images: a repository has folders of rows with the same names."""
        if not self._is_folder:
            return False
        for folder in (os.path.join(base, group) for base in (self._folder, self._unpacked)):
            if os.path.isdir(folder):
                with os.scandir(folder) as entries:
                    first = next(entries, None)
                if first is None or not first.name.endswith(".parquet"):
                    return True
        return False

    def _needed(self, path: str) -> list[Archive]:
        """The archives that may hold an image, opened now if they were not."""
        names = archive_names(path) if self._is_folder else ("",)
        for name in names:
            if name not in self._archives:
                # isfile follows links; the hub's cache consists of them
                files = [name] if os.path.isfile(self.path / name) else _search(self._folder, folded(name))
                self._archives[name] = self._open(self.path / files[0], name) if len(files) == 1 else None
        return [archive for name in names if (archive := self._archives[name]) is not None]

    def _open(self, file: Path, name: str) -> Archive:
        try:
            return Archive(file)
        except ValueError as error:
            raise ValueError(f"{error}; remove it and fetch it again{self._command(name)}") from error

    def _missing(self, path: str) -> str:
        names = archive_names(path)
        places = f"unpacked or in {' or '.join(f'`{name}`' for name in names)}"
        return f"{places}; fetch it{self._command(names[0])}" if self.fetch else places

    def _command(self, name: str) -> str:
        return f": `{self.fetch.replace('{archive}', name)}`" if self.fetch else ""


def _spellings(path: str) -> tuple[str, ...]:
    """The path as it is, and with or without ``images/`` in front."""
    inside = path.removeprefix("images/")
    return path, f"images/{path}" if inside == path else inside


def _search(folder: str, path: str, start: str = "") -> list[str]:
    """The files of a folder below `start` whose paths are `path` when `folded`, relative to the folder."""
    listing = _listing(os.path.join(folder, start))
    found = [os.path.join(start, entry) for entry in listing.get(path, ())]
    found = [name for name in found if os.path.isfile(os.path.join(folder, name))]
    for slash in re.finditer("/", path):  # at each slash: on Linux a name may hold backslashes
        for entry in listing.get(path[: slash.start()], ()):
            found += _search(folder, path[slash.end() :], os.path.join(start, entry))
    return found


def _listing(folder: str) -> Mapping[str, list[str]]:
    """The names in a folder by their `folded` form."""
    try:
        return _list(folder, os.stat(folder).st_mtime_ns)
    except OSError:  # no folder, or not readable
        return {}


@lru_cache(maxsize=8)  # a folder may be large, and each of its images is looked up
def _list(folder: str, changed: int) -> Mapping[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(folded(name), []).append(name)
    return names


def _read_file(folder: str, file: str) -> bytes:
    with open(file, "rb", buffering=0) as stream:
        # checked after opening, for the file that was opened
        if not _opened(stream.fileno(), file).startswith(os.path.join(folder, "")):
            raise ImageError("a symbolic link leaves the image root")
        check_size(os.fstat(stream.fileno()).st_size)
        return stream.readall()


def _opened(number: int, file: str) -> str:
    """The path, without links, of an open file."""
    try:  # Linux knows it, in a single call; others look at each folder on the way
        return os.readlink(f"{_OPEN_FILES}/{number}")
    except OSError:
        return os.path.realpath(file)
