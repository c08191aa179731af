"""One door for all sources of rows."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fanoise_lightning._hub import WAIT
from fanoise_lightning.data.sources.files import is_file_of_rows, open_file
from fanoise_lightning.data.sources.hub_errors import HubError, ask_quickly, attempt
from fanoise_lightning.data.sources.hub_repository import HUB
from fanoise_lightning.data.sources.memory import open_dataset, open_frame, open_list
from fanoise_lightning.data.sources.picture_folder import open_folder
from fanoise_lightning.data.sources.source import Source

__all__ = ["open_source"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_source(source: Any) -> Source:
    """Find out what a source is, and what columns it has; its rows are read later.

    Args:
        source: the path of a file (JSON-lines, JSON, parquet, CSV, TSV), of a folder of parquet files, or of
            a folder of pictures; the id of a data set on the Hugging Face hub, of which the split ``train``
            is read; a DataFrame (pandas, polars, Arrow), a `datasets.Dataset`, or a list of dicts, of `Pair`,
            of `Sample`, of texts or of pictures.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        HubError: if the data set cannot be fetched.
        TypeError: for anything else.
        ValueError: if it cannot be read, or has no columns.

    Example:
        >>> open_source([{"caption": "a red mug", "image": "1.jpg"}]).kinds
        {'caption': 'text', 'image': 'image'}
    """
    opened = _open(source)
    if not opened.kinds:
        raise ValueError(f"`{opened.name}` is empty: there are no rows to read")
    return opened


def _open(source: Any) -> Source:
    if isinstance(source, str | os.PathLike):
        return _open_path(source)
    if type(source).__module__.split(".")[0] == "datasets":
        return open_dataset(source)
    if hasattr(source, "__arrow_c_stream__"):
        return open_frame(source)
    if isinstance(source, Sequence):
        return open_list(source)
    raise TypeError(
        "a source of rows is a path, the id of a data set on the hub, a DataFrame, a `datasets.Dataset`, "
        f"or a list, got {type(source).__name__}; make it one of these: `list(rows)` of an iterator, "
        "`pandas.DataFrame(columns)` of a dict of columns, `frame.collect()` of a lazy frame"
    )


def _open_path(source: str | os.PathLike[str]) -> Source:
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text.startswith(HUB):
        return _open_hub(text.removeprefix(HUB))
    if text and path.is_dir():
        return open_folder(path)
    if text and path.exists():
        return open_file(path)
    if isinstance(source, str) and _HUB_ID.fullmatch(text) and not is_file_of_rows(path):
        return _open_hub(text)
    advice = ": addresses are not opened, download it first" if "://" in text else ""
    raise FileNotFoundError(f"`{source}` does not exist{advice}")


def _open_hub(name: str) -> Source:
    from datasets import load_dataset  # type: ignore[import-untyped]
    from huggingface_hub import HfApi, is_offline_mode

    what = f"`{name}`, which is no file or folder here, as a data set on the hub"
    others = "for a config, split, revision or file of your choice pass `datasets.load_dataset(...)`"
    if not _HUB_ID.fullmatch(name):
        raise ValueError(f"{what}: its name must be `user/name`; {others}")
    if not is_offline_mode():  # then only the cache is read
        ask_quickly(partial(HfApi().dataset_info, name, timeout=WAIT), what)
    try:
        dataset = attempt(partial(load_dataset, name, split="train"), what)
    except HubError as error:
        if isinstance(error.__cause__, ValueError):  # several configs, or no split of this name
            raise ValueError(f"{what}: {error.__cause__}; {others}") from error
        raise
    return replace(open_dataset(dataset, name), absolute=False)
