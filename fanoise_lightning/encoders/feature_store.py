"""Features on disk, by the key of what they are of: appended by any process, read through memory maps.

Each process that writes has two files of its own: rows of float32, and keys of 16 bytes. A row is complete
once its key is. A kill that cuts off the end of a file loses the last rows and nothing else, since nothing is
ever changed in place.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fanoise_lightning._disk import naming_a_full_disk

__all__ = ["KEY_BYTES", "FeatureStore"]

KEY_BYTES = 16
_KEY = np.dtype(f"S{KEY_BYTES}")
_ROWS, _KEYS = ".rows", ".keys"


class FeatureStore:
    """Rows of D numbers by key.

    Can be pickled and forked; each process opens its own files.

    Args:
        folder: where the files are. It is made by the first row that is added.
        dim: D.

    Example:
        >>> import tempfile
        >>> store = FeatureStore(tempfile.mkdtemp(), dim=2)
        >>> store.add(["00" * 16], np.ones((1, 2), np.float32))
        >>> rows, found = store.get(["00" * 16, "01" * 16])
        >>> found.tolist()
        [True, False]
    """

    def __init__(self, folder: str | Path, dim: int) -> None:
        self.folder, self.dim = Path(folder), dim
        self._forget()

    def _forget(self) -> None:
        self._sizes: dict[str, int] = {}  # of the key files, when they were read
        self._rows: dict[str, NDArray[np.float32]] = {}  # the parts, by their key files
        self._index = np.empty(0, _KEY)  # sorted
        self._place = np.empty((0, 2), np.int64)  # part and row of each key
        self._writer: tuple[int, Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "dim": self.dim}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.dim = state["folder"], state["dim"]
        self._forget()

    def get(self, keys: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The rows of some keys.

        Args:
            keys: n keys of 32 hexadecimal digits.

        Returns:
            (n, D), zeros where there is none, and (n,), where there is one.
        """
        wanted = _as_bytes(keys)
        found = self._find(wanted)
        if not found.all() and self._read():
            found = self._find(wanted)
        rows = np.zeros((len(wanted), self.dim), np.float32)
        at = self._place[np.searchsorted(self._index, wanted[found])]
        for part, data in enumerate(self._rows.values()):
            own = at[:, 0] == part
            rows[np.flatnonzero(found)[own]] = data[at[own, 1]]
        return rows, found

    def add(self, keys: Sequence[str], rows: NDArray[np.float32]) -> None:
        """Append rows (n, D), each under its key.

        Raises:
            OSError: if they cannot be written, as on a full disk. What was there before stays.
        """
        data, names = self._files()
        try:
            with naming_a_full_disk(Path(getattr(data, "name", self.folder)), 4 * rows.size):
                data.write(np.ascontiguousarray(rows, np.float32).tobytes())
                data.flush()  # before the keys: a key without its row would be a wrong feature
                names.write(_as_bytes(keys).tobytes())
                names.flush()
        except BaseException:
            # rows and keys may be out of step: nothing may be appended to these files any more
            self._writer = None
            raise

    def __len__(self) -> int:
        self._read()
        return len(self._index)

    def _find(self, wanted: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        if not len(self._index):
            return np.zeros(len(wanted), bool)
        at = np.searchsorted(self._index, wanted).clip(max=len(self._index) - 1)
        return self._index[at] == wanted

    def _read(self) -> bool:
        """Read the keys that were added since the last time; whether there are any."""
        files = sorted(self.folder.glob(f"*{_KEYS}"))
        sizes = {file.name: file.stat().st_size // KEY_BYTES for file in files}
        if sizes == self._sizes:
            return False
        if any(sizes.get(name, 0) < size for name, size in self._sizes.items()):  # somebody removed files
            self._forget()
        for file in files:
            data = file.with_suffix(_ROWS)
            known = self._rows.get(file.name, ())
            count = min(sizes[file.name], data.stat().st_size // (4 * self.dim) if data.exists() else 0)
            if count > len(known):
                self._rows[file.name] = np.memmap(data, np.float32, "r", shape=(count, self.dim))
                keys = np.fromfile(file, _KEY, count - len(known), offset=len(known) * KEY_BYTES)
                self._insert(keys, list(self._rows).index(file.name), len(known))
        self._sizes = sizes
        return True

    def _insert(self, keys: NDArray[np.bytes_], part: int, first: int) -> None:
        """Note where new keys are: from row `first` of a part."""
        keys, rows = np.unique(keys, return_index=True)
        new = ~self._find(keys)
        slots = np.searchsorted(self._index, keys[new])
        self._index = np.insert(self._index, slots, keys[new])
        places = np.stack([np.full(new.sum(), part), first + rows[new]], axis=1)
        self._place = np.insert(self._place, slots, places, axis=0)

    def _files(self) -> tuple[Any, Any]:
        if self._writer is None or self._writer[0] != os.getpid():  # a fork must not write into our files
            self.folder.mkdir(parents=True, exist_ok=True)
            name = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
            files = (open(name.with_suffix(_ROWS), "ab"), open(name.with_suffix(_KEYS), "ab"))  # noqa: SIM115
            self._writer = (os.getpid(), *files)
        return self._writer[1:]


def _as_bytes(keys: Sequence[str]) -> NDArray[np.bytes_]:
    return np.frombuffer(b"".join(map(bytes.fromhex, keys)), _KEY)
