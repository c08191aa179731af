"""Images embedded in the rows as bytes: kept in Arrow memory, each under the hash of its content."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["KEY_PREFIX", "EmbeddedImages", "KeyedBytes", "holds_images", "to_keys"]

KeyedBytes = tuple[pa.LargeStringArray, pa.LargeBinaryArray]  # keys and bytes

KEY_PREFIX = "sha256:"
_LENGTH = len(KEY_PREFIX) + 64


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type holds images: bytes, or ``{bytes, path}``, as `datasets` writes them."""
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return set(fields) == {"bytes", "path"} and holds_images(fields["bytes"])
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def to_keys(column: pa.Array) -> tuple[pa.LargeStringArray, KeyedBytes]:
    """Keys that take the place of image paths; equal bytes have equal keys.

    Args:
        column: of images, see `holds_images`; an image without bytes keeps its path.

    Returns:
        The key or path of each row, and the bytes with their keys, without the rows that have none.
    """
    is_struct = pa.types.is_struct(column.type)
    data = (pc.struct_field(column, "bytes") if is_struct else column).cast(pa.large_binary())
    keys = pa.array(
        [KEY_PREFIX + sha256(item.as_buffer()).hexdigest() if item.is_valid else None for item in data],
        pa.large_string(),
    )
    part = keys.drop_null(), data.drop_null()
    if is_struct:
        keys = pc.coalesce(keys, pc.struct_field(column, "path").cast(pa.large_string()))
    return keys, part


class EmbeddedImages:
    """The images of one subset by their keys; the same image in two rows is one image.

    Args:
        parts: from `to_keys`.
    """

    def __init__(self, parts: Sequence[KeyedBytes]) -> None:
        # sorted bytes instead of a dict: forked processes copy the objects whose references they count
        keys = np.array([key for part, _ in parts for key in part.to_pylist()], dtype=f"S{_LENGTH}")
        self._keys, self._rows = np.unique(keys, return_index=True)
        self._data = pa.chunked_array([data for _, data in parts], pa.large_binary())

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, key: str) -> bytes | None:
        """The bytes under `key`, ``None`` if it is the key of no image here."""
        if not key.startswith(KEY_PREFIX) or len(name := key.encode()) != _LENGTH:
            return None
        at = np.searchsorted(self._keys, name)
        if at == len(self._keys) or self._keys[at] != name:
            return None
        return self._data[int(self._rows[at])].as_py()
