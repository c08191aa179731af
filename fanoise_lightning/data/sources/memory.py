"""Rows in memory: DataFrames, a `datasets.Dataset`, lists of `Pair`, `Sample`, dicts, texts or pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fanoise_lightning.data.rows.columns import Columns, Kind
from fanoise_lightning.data.rows.embedded import EmbeddedImages
from fanoise_lightning.data.sources.source import SAMPLE, Source, kind_of_values, kinds_of_table, read_from
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
        if not hasattr(frame, "to_dict"):
            raise TypeError(f"the {label} cannot be read as an Arrow table: {error}") from error
        return open_list(frame.to_dict("records"), label)
    return Source(label, kinds_of_table(table), read_from(table, label), Path.cwd())


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
            texts = pc.take(pa.array(labels[key].names), table[key])
            table = table.set_column(table.column_names.index(key), key, texts)
        return read_from(table, name)(columns)

    kinds = kinds_of_table(arrow[:SAMPLE], dict.fromkeys(labels, "text"))
    return Source(name, kinds, read, Path.cwd())


def open_list(rows: Sequence[Any], label: str = "list") -> Source:
    """A list of dicts, of `Pair`, of `Sample`, of texts, or of pictures.

    Raises:
        TypeError: for rows of any other type, or of several; names the first.
        ValueError: for an empty list, or a sample of several images.
    """
    if not rows:
        raise ValueError(f"the {label} is empty: there are no rows to read")
    single = kind_of_values("", rows[:SAMPLE])
    records = [_as_record(row, index, single, label) for index, row in enumerate(rows)]
    if len(forms := {type(row) if isinstance(row, Pair | Sample | str) else object for row in rows}) > 1:
        names = ", ".join(sorted(form.__name__ for form in forms))
        raise TypeError(f"the {label} mixes rows of several types ({names}); give all rows the same form")
    columns = list(dict.fromkeys(name for record in records[:SAMPLE] for name in record))
    kinds = {
        name: kind_of_values(name, [record.get(name) for record in records[:SAMPLE]]) for name in columns
    }

    def read(wanted: Columns) -> tuple[pa.Table, EmbeddedImages | None]:
        arrays = {name: _to_array(records, name, kind, label) for name, kind in wanted.items()}
        return read_from(pa.table(arrays), label)(wanted)

    return Source(label, kinds, read, Path.cwd())


def _as_record(row: Any, index: int, single: Kind | None, label: str) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    if isinstance(row, Sample):
        return _of_samples("", [row], index, label)
    if isinstance(row, Pair):
        negatives = [_of_samples("", [sample], index, label) for sample in row.negatives]
        columns = {f"negative_{kind}": [record[kind] for record in negatives] for kind in ("text", "image")}
        return {
            **_of_samples("query_", [row.query], index, label),
            **_of_samples("target_", [row.target], index, label),
            **(columns if negatives else {}),
        }
    if single in ("text", "image"):
        return {single: row}
    raise TypeError(
        f"row {index} of the {label} is a {type(row).__name__}; expected a dict, a `Pair`, a `Sample`, a "
        "text or a picture"
    )


def _of_samples(prefix: str, samples: Sequence[Sample], index: int, label: str) -> dict[str, Any]:
    (sample,) = samples
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
                listed = value if isinstance(value, list | tuple) else [] if value is None else [value]
                values.append([one(each) for each in listed])
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{label}`, row {index}: column `{name}` {error}") from error
    return pa.array(values, pa.large_list(item) if are_lists else item)


def _to_id(value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _to_text(value)


def _to_text(value: Any) -> str:
    if value is None or value != value:  # pandas has NaN for a missing text
        return ""
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair is a ValueError
        return value
    raise TypeError(f"must hold text, got {value!r}")


def _to_picture(value: Any) -> dict[str, Any] | None:
    if value is None or isinstance(value, float):
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
