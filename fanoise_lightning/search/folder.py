"""The folder that ``fanoise embed`` writes: a manifest, and shards of embeddings beside shards of rows.

::

    manifest.json          what was embedded, by which model; written last: a folder without it is unfinished
    00000.safetensors      embeddings (n, D)
    00000.parquet          the id, text and image of these n rows
    00001.safetensors      ...
"""

from __future__ import annotations

import json
import re
import reprlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fanoise_lightning.callbacks._files import whole_file

__all__ = ["FORMAT", "MANIFEST", "EmbeddingFolder", "Row", "read_notes", "write_shard"]

FORMAT = 1
MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
_COLUMNS = pa.schema([(name, pa.large_string()) for name in ("id", "text", "image")])


class Row(NamedTuple):
    """A row of the catalogue.

    Args:
        id: as in the source.
        text: ``""`` for none.
        image: the path relative to the manifest's ``image_root``; ``""`` for none.
    """

    id: str
    text: str
    image: str


class Block(NamedTuple):
    """Consecutive rows of a shard that are read together.

    Args:
        first: the number of the first row, in the folder.
        file: of the shard.
        offset: where in the file they are, in bytes.
        shape: (n, D).
        dtype: as numpy calls it.
    """

    first: int
    file: Path
    offset: int
    shape: tuple[int, int]
    dtype: str

    def read(self) -> Tensor:
        """The embeddings (n, D).

        Read, not mapped: to copy from the system's cache is quicker than to map pages that are used once, and
        the memory of the process stays that of a block.

        Raises:
            ValueError: if the file is damaged.
        """
        numbers = np.fromfile(self.file, self.dtype, self.shape[0] * self.shape[1], offset=self.offset)
        if len(numbers) < self.shape[0] * self.shape[1]:
            raise ValueError(f"`{self.file}` is damaged (it ends too early); {_AGAIN}")
        return torch.from_numpy(numbers).view(self.shape)


class EmbeddingFolder:
    """A folder of embeddings, opened for reading; nothing is loaded that is not asked for.

    Args:
        path: the folder.

    Attributes:
        path: the same.
        manifest: what ``manifest.json`` holds.

    Raises:
        FileNotFoundError: if it is no such folder, it is unfinished, or a shard is missing.
        ValueError: if the manifest is damaged or of another format.

    Example:
        >>> folder = EmbeddingFolder("index")                                # doctest: +SKIP
        >>> scores = [shard.float() @ query for shard in folder.shards()]    # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.manifest = _read_manifest(self.path)
        self._shards = [(shard["name"], shard["rows"]) for shard in self.manifest["shards"]]
        for name, _ in self._shards:
            for file in _files(self.path, name):
                if not file.is_file():
                    raise FileNotFoundError(f"`{file}` is missing; {_AGAIN}")
        self._starts = [0, *accumulate(rows for _, rows in self._shards)]

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    def __repr__(self) -> str:
        return f"EmbeddingFolder({str(self.path)!r}, rows={len(self)}, dimension={self.dimension})"

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.manifest["dimension"])

    @property
    def dtype(self) -> torch.dtype:
        """``torch.float16`` or ``torch.float32``."""
        return torch.float16 if self.manifest["dtype"] == "float16" else torch.float32

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model, a hash of its weights and options."""
        return str(self.manifest["model"]["fingerprint"])

    def shards(self) -> Iterator[Tensor]:
        """The embeddings (n, D) of each shard in the order of the rows, mapped from the file, not read.

        Raises:
            ValueError: for a damaged file.
        """
        for name, rows in self._shards:
            file, _ = _files(self.path, name)
            with _reading(file), safe_open(file, "pt") as opened:
                embeddings = opened.get_tensor("embeddings")
            if tuple(embeddings.shape) != (rows, self.dimension) or embeddings.dtype != self.dtype:
                raise ValueError(
                    f"`{file}` holds {tuple(embeddings.shape)} numbers of {embeddings.dtype}, the manifest "
                    f"says {(rows, self.dimension)} of {self.dtype}; {_AGAIN}"
                )
            yield embeddings

    def blocks(self, size: int) -> list[Block]:
        """All rows in order, at most `size` of one shard at once, each to be read when it is needed.

        Raises:
            ValueError: for a damaged file.
        """
        found, dtype = [], self.manifest["dtype"]
        for (name, _), begin, shard in zip(self._shards, self._starts, self.shards()):
            file, _ = _files(self.path, name)
            offset = _offset(file)
            for start in range(0, len(shard), size):
                shape = (min(size, len(shard) - start), self.dimension)
                at = offset + start * self.dimension * self.dtype.itemsize
                found.append(Block(begin + start, file, at, shape, dtype))
        return found

    def row(self, number: int) -> Row:
        """The row with a number from 0 to ``len(self) - 1``; its shard of rows is read.

        Raises:
            IndexError: if there is no such row.
            ValueError: for a damaged file.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"there is no row {number} in `{self.path}`, which has {len(self)}")
        shard = bisect_right(self._starts, number) - 1
        row = self._table(*self._shards[shard]).slice(number - self._starts[shard], 1).to_pylist()[0]
        return Row(**row)

    @cached_property
    def columns(self) -> pa.Table:
        """The columns ``id``, ``text`` and ``image`` of all rows, in memory.

        Raises:
            ValueError: for a damaged file.
        """
        return pa.concat_tables([_COLUMNS.empty_table(), *(self._table(*shard) for shard in self._shards)])

    def _table(self, name: str, rows: int) -> pa.Table:
        _, file = _files(self.path, name)
        with _reading(file):
            table = pq.read_table(file, partitioning=None)
            if table.num_rows != rows or not set(_COLUMNS.names) <= set(table.column_names):
                raise ValueError(
                    f"`{file}` holds {table.num_rows} rows of {table.column_names}, the manifest says {rows} "
                    f"of {_COLUMNS.names}; {_AGAIN}"
                )
            table = table.select(_COLUMNS.names).cast(_COLUMNS)
        for name, column in zip(table.column_names, table.columns):
            if column.null_count:
                raise ValueError(f"`{file}` is damaged (a row without `{name}`); {_AGAIN}")
        return table


def write_shard(folder: Path, name: str, embeddings: Tensor, rows: pa.Table, notes: dict[str, Any]) -> None:
    """Write a shard, whole or not at all.

    Args:
        folder: where to.
        name: of the shard.
        embeddings: (n, D).
        rows: their n rows: ``id``, ``text`` and ``image``.
        notes: what :func:`read_notes` is to return.
    """
    file, table = _files(folder, name)
    with whole_file(table) as unfinished:
        pq.write_table(rows.select(_COLUMNS.names).cast(_COLUMNS), unfinished, compression="zstd")
    # the embeddings come last: a shard is there if they are
    with whole_file(file) as unfinished:
        # `save_file` writes a temporary file of its own, which would stay behind if it were killed
        unfinished.write_bytes(save({"embeddings": embeddings.contiguous()}, {"notes": json.dumps(notes)}))


def read_notes(folder: Path, name: str) -> dict[str, Any] | None:
    """What was noted with a shard and, under ``rows``, its number of rows; ``None`` if it is not there.

    Raises:
        ValueError: for a damaged file.
    """
    file, table = _files(folder, name)
    if not (file.is_file() and table.is_file()):
        return None
    with _reading(file), safe_open(file, "pt") as opened:
        notes = json.loads((opened.metadata() or {}).get("notes", "{}"))
        return {**notes, "rows": opened.get_slice("embeddings").get_shape()[0]}


_AGAIN = "remove it and run the same `fanoise embed` again, which writes what is missing"


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of a shard: embeddings and rows."""
    return folder / f"{name}.safetensors", folder / f"{name}.parquet"


def _offset(file: Path) -> int:
    """Where the embeddings begin in a safetensors file: behind its header and the length of that."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        return 8 + length + int(json.loads(opened.read(length))["embeddings"]["data_offsets"][0])


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Say which file is damaged."""
    try:
        yield
    except (SafetensorError, pa.ArrowException, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"`{file}` is damaged ({error}); {_AGAIN}") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        if (folder / UNFINISHED).is_file():
            raise FileNotFoundError(
                f"`{folder}` is unfinished: run the same `fanoise embed` again, which continues it"
            )
        raise FileNotFoundError(f"`{folder}` has no {MANIFEST}: it is no folder that `fanoise embed` wrote")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{file}` is damaged ({error}); {_AGAIN}") from error
    known = manifest.get("format") if isinstance(manifest, dict) else None
    if known != FORMAT:
        raise ValueError(f"`{file}` has format {known!r}, this version reads {FORMAT}: write the folder anew")
    for name, is_right in _FIELDS.items():
        if name not in manifest:
            raise ValueError(f"`{file}` is damaged: it has no `{name}`; {_AGAIN}")
        if not is_right(manifest[name]):
            raise ValueError(f"`{file}` is damaged: `{name}` is {reprlib.repr(manifest[name])}; {_AGAIN}")
    if manifest["rows"] != (listed := sum(shard["rows"] for shard in manifest["shards"])):
        raise ValueError(
            f"`{file}` is damaged: `rows` is {manifest['rows']}, its shards have {listed}; {_AGAIN}"
        )
    return manifest


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_model(model: Any) -> bool:
    return (
        isinstance(model, dict)
        and _is_text(model.get("fingerprint"))
        and isinstance(model.get("description"), dict | None)
        and isinstance(model.get("checkpoint"), str | None)
    )


def _is_shard(shard: Any) -> bool:
    """Whether it names files in the folder: a manifest may come from anywhere."""
    return (
        isinstance(shard, dict)
        and re.fullmatch(r"\d{5,}", str(shard.get("name"))) is not None
        and _is_count(shard.get("rows"))
    )


def _are_shards(shards: Any) -> bool:
    """Whether each is one, and none is there twice."""
    return (
        isinstance(shards, list)
        and all(map(_is_shard, shards))
        and len({shard["name"] for shard in shards}) == len(shards)
    )


def _are_skipped(lines: Any) -> bool:
    return isinstance(lines, list) and all(
        isinstance(line, dict) and _is_text(line.get("id")) and _is_text(line.get("reason")) for line in lines
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "model": _is_model,
    "dimension": lambda value: _is_count(value) and value > 0,
    "dtype": lambda value: value in ("float16", "float32"),
    "normalized": lambda value: value is True,
    "source": _is_text,
    "image_root": lambda value: value is None or _is_text(value),
    "rows": _is_count,
    "shards": _are_shards,
    "skipped": _are_skipped,
}
