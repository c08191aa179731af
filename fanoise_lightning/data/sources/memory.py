"""Rows in memory: DataFrames, a `datasets.Dataset`, lists of `Pair`, `Sample`, dicts, texts or pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fanoise_lightning.data.rows.columns import Columns, Kind
from fanoise_lightning.data.rows.embedded import EmbeddedImages
from fanoise_lightning.data.sources.source import (
    SAMPLE,
    Source,
    as_list,
    is_missing,
    kind_of_values,
    kinds_of_records,
    kinds_of_tables,
    read_from,
)
from fanoise_lightning.pixels import upright_rgb
from fanoise_lightning.sample import Pair, Sample

__all__ = ["open_dataset", "open_frame", "open_list"]

_PICTURE = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])


def open_frame(frame: Any) -> Source:
    """A DataFrame of pandas or polars, an Arrow table, or anything else with `__arrow_c_stream__`."""
    label = type(frame).__name__
    try:
        table = pa.table(frame)
    except (pa.ArrowException, TypeError) as error:  # a column of Pillow images, or of mixed types
        if hasattr(frame, "to_list"):
            return open_list(frame.to_list(), label)  # a single column
        if not hasattr(frame, "to_dict"):
            raise TypeError(f"the {label} cannot be read as an Arrow table: {error}") from error
        return open_list(frame.to_dict("records"), label)
    kinds = kinds_of_tables(table.slice(0, SAMPLE), lambda names: [table.select(names)])
    return Source(label, kinds, read_from(table, label), Path.cwd())


def open_dataset(dataset: Any, name: str = "Dataset") -> Source:
    """A `datasets.Dataset`; the values of a ClassLabel column are its names.

    Raises:
        TypeError: for a dictionary of splits, or a stream.
    """
    from datasets import ClassLabel, Dataset  # type: ignore[import-untyped]

    if not isinstance(dataset, Dataset):
        splits = f": {', '.join(dataset)}" if isinstance(dataset, Mapping) else ", not streamed"
        raise TypeError(f"`{name}` is a {type(dataset).__name__}; expected one of its splits{splits}")
    labels = {key: kind for key, kind in dataset.features.items() if isinstance(kind, ClassLabel)}
    arrow = dataset.with_format("arrow")

    def read(columns: Columns) -> tuple[pa.Table, EmbeddedImages | None]:
        names = [key for key in dataset.column_names if key in columns]
        table = arrow.select_columns(names)[:]
        for key in set(labels) & set(names):
            known = pc.if_else(pc.less(table[key], 0), None, table[key])  # -1 is no label
            texts = pc.take(pa.array(labels[key].names), known)
            table = table.set_column(table.column_names.index(key), key, texts)
        return read_from(table, name)(columns)

    def rest(names: list[str]) -> Iterator[pa.Table]:
        part = arrow.select_columns(names)
        return (part[start : start + SAMPLE] for start in range(SAMPLE, len(dataset), SAMPLE))

    kinds = kinds_of_tables(arrow[:SAMPLE], rest)
    return Source(name, kinds | dict.fromkeys(labels, "text"), read, Path.cwd())


def open_list(rows: Sequence[Any], label: str = "list") -> Source:
    """A list of dicts, of `Pair`, of `Sample`, of texts, or of pictures.

    Raises:
        TypeError: for rows of any other type, or of several; names the first.
        ValueError: for an empty list, or a sample of several images.
    """
    if not rows:
        raise ValueError(f"the {label} is empty: there are no rows to read")
    forms = [
        next((form for form in (Mapping, Pair, Sample, str) if isinstance(row, form)), object) for row in rows
    ]
    if (other := next((index for index, form in enumerate(forms) if form is not forms[0]), None)) is not None:
        raise TypeError(
            f"row {other} of the {label} is a {type(rows[other]).__name__}, and row 0 is a "
            f"{type(rows[0]).__name__}; give all rows the same form"
        )
    single = kind_of_values("", rows)
    records = [_as_record(row, index, single, label) for index, row in enumerate(rows)]
    kinds = kinds_of_records(records)

    def read(wanted: Columns) -> tuple[pa.Table, EmbeddedImages | None]:
        arrays = {name: _to_array(records, name, kind, label) for name, kind in wanted.items()}
        return read_from(pa.table(arrays), label)(wanted)

    return Source(label, kinds, read, Path.cwd())


def _as_record(row: Any, index: int, single: Kind | None, label: str) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    if isinstance(row, Sample):
        return _of_sample("", row, index, label)
    if isinstance(row, Pair):
        negatives = [_of_sample("", sample, index, label) for sample in row.negatives]
        columns = {f"negative_{kind}": [record[kind] for record in negatives] for kind in ("text", "image")}
        return {
            **_of_sample("query_", row.query, index, label),
            **_of_sample("target_", row.target, index, label),
            **(columns if negatives else {}),
        }
    if single in ("text", "image"):
        return {single: row}
    raise TypeError(
        f"row {index} of the {label} is a {type(row).__name__}; expected a dict, a `Pair`, a `Sample`, a "
        "text or a picture"
    )


def _of_sample(prefix: str, sample: Sample, index: int, label: str) -> dict[str, Any]:
    if isinstance(sample.image, tuple) and len(sample.image) > 1:
        raise ValueError(
            f"row {index} of the {label} has a sample of {len(sample.image)} images; rows hold at most one: "
            "combine them, or train with a `DataLoader` of your own"
        )
    image = sample.image[0] if isinstance(sample.image, tuple) else sample.image
    return {f"{prefix}text": sample.text, f"{prefix}image": image}


def _to_array(records: Sequence[Mapping[str, Any]], name: str, kind: Kind, label: str) -> pa.Array:
    one = _to_id if kind == "id" else _to_text if "text" in kind else _to_picture
    item = _PICTURE if "image" in kind else pa.large_string()
    are_lists = kind.endswith("s")
    values: list[Any] = []
    for index, record in enumerate(records):
        value = record.get(name)
        try:
            if not are_lists:
                values.append(one(value))
            else:
                items = as_list(value)
                if items is None:
                    items = [] if is_missing(value) else [value]
                values.append([one(each) for each in items])
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{label}`, row {index}: column `{name}` {error}") from error
    return pa.array(values, pa.large_list(item) if are_lists else item)


def _to_id(value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _to_text(value)


def _to_text(value: Any) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair is a ValueError
        return value
    raise TypeError(f"must hold text, got {value!r}")


def _to_picture(value: Any) -> dict[str, Any] | None:
    if is_missing(value):
        return None
    if isinstance(value, str | Path):
        return {"bytes": None, "path": str(value)}
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        return dict(value)
    (picture,) = Sample(image=value).images  # Pillow, array, deferred: or an error that says what is expected
    file = io.BytesIO()
    upright_rgb(picture).save(file, "PNG", compress_level=1)
    return {"bytes": file.getvalue(), "path": None}
