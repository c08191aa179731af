"""What a full disk is called by those who write files, and how to say it with path and sizes."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["naming_a_full_disk"]

# EFBIG: the limit that `ulimit -f` or a job scheduler sets
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# torch's writer and safetensors raise errors of their own; the number is in the text of the latter alone
_TEXT = re.compile(rf"PytorchStreamWriter failed|unexpected pos|os error ({'|'.join(map(str, _FULL))})\b")


@contextmanager
def naming_a_full_disk(path: Path, needed: int | None = None) -> Iterator[None]:
    """Say which file had no space, how much it takes and how much there is.

    Args:
        path: of the file that is written inside.
        needed: its size in bytes, if that is known.

    Raises:
        OSError: instead of any error that a full disk, a quota or a limit of the file size leads to.

    Example:
        >>> with naming_a_full_disk(Path("last.ckpt"), 3_000_000):
        ...     raise OSError(errno.ENOSPC, "No space left on device")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: it takes 3.0 MB, and ... free up space, ...: 'last.ckpt'
    """
    try:
        yield
    except Exception as error:
        if (number := _number(error)) is None:
            raise
        size = f"it takes {needed / 1e6:,.1f} MB, and " if needed is not None else ""
        free = shutil.disk_usage(path.absolute().parent).free / 1e6
        raise OSError(
            number,
            f"{os.strerror(number)}: {size}{free:,.1f} MB are free; free up space, raise the quota or limit, "
            "or write elsewhere. Nothing is left half-written",
            str(path),
        ) from error


def _number(error: BaseException) -> int | None:
    """The errno of a full disk, if that is what an error or one before it is about."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _FULL:
            return link.errno
        if found := _TEXT.search(str(link)):
            known = int(found[1]) if found[1] else errno.ENOSPC
            earlier = _number(link.__cause__ or link.__context__ or Exception())
            return earlier or known
        link = link.__cause__ or link.__context__
    return None
