"""Rows that hold their images themselves: bytes, or the struct of an `Image` column of `datasets`."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_roots import eval_row, train_row, write_image, write_rows
from PIL import Image

from fanoise_lightning.data.batches.mixing import Batch
from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.pairs import PairDataModule
from fanoise_lightning.data.rows.embedded import EmbeddedImages, to_keys
from fanoise_lightning.data.rows.records import read_eval, read_train
from fanoise_lightning.data.rows.tables import read_table
from fanoise_lightning.subset import Subset

SUBSET = Subset("s", "retrieval", "IND")
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(file, "png")
    return file.getvalue()


def key(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def write(path: Path, rows: list[dict[str, Any]], **types: pa.DataType) -> Path:
    """Parquet rows, with the given types of columns."""
    table = pa.Table.from_pylist(rows)
    for name, kind in types.items():
        column = pa.array([row[name] for row in rows], kind)
        table = table.set_column(table.column_names.index(name), name, column)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def greys(rows: Any, references: Any) -> list[int]:
    """The grey of each image, -1 for none, opened without an image root."""
    store = ImageStore(embedded=[rows.embedded])
    opened = [store.open(each.image).getpixel((0, 0))[0] if each.image else -1 for each in references]
    assert len(opened) == len(references)
    return opened


FORMS: dict[str, tuple[pa.DataType, Callable[[bytes | None], Any]]] = {
    "binary": (pa.binary(), lambda data: data),
    "large binary": (pa.large_binary(), lambda data: data),
    "binary view": (pa.binary_view(), lambda data: data),
    "struct": (IMAGE, lambda data: {"bytes": data, "path": data and "x.png"}),
    "struct or nothing": (IMAGE, lambda data: data and {"bytes": data, "path": None}),
}
ALL_FORMS = pytest.mark.parametrize("form", FORMS)


@pytest.mark.filterwarnings("ignore:.*mention an image")
@ALL_FORMS
def test_training_rows_hold_their_images(tmp_path: Path, form: str) -> None:
    kind, wrap = FORMS[form]
    rows = [
        {**train_row(number, "q", "p"), "qry_image_path": wrap(query), "pos_image_path": wrap(target)}
        for number, (query, target) in enumerate([(png(1), None), (png(2), png(1)), (None, png(3))])
    ]
    path = write(tmp_path / "s.parquet", rows, qry_image_path=kind, pos_image_path=kind)
    read = read_train(path, "s")
    assert greys(read, [read.queries[row] for row in range(3)]) == [1, 2, -1]
    assert greys(read, [read.targets[row] for row in range(3)]) == [-1, 1, 3]
    assert read.queries[0].image == read.targets[1].image == key(png(1))
    assert len(read.embedded) == 3  # one of the four came twice
    assert len(read.paths) == 0
    kept = pickle.loads(pickle.dumps(read.take(np.array([2]))))
    assert greys(kept, [kept.targets[0]]) == [3]


@ALL_FORMS
def test_candidates_are_lists_of_images_and_alike_by_their_content(tmp_path: Path, form: str) -> None:
    kind, wrap = FORMS[form]
    rows = [
        {
            **eval_row(0, candidates),
            "qry_img_path": wrap(png(9)),
            "tgt_text": [""] * len(candidates),
            "tgt_img_path": [wrap(png(grey)) for grey in candidates],
        }
        for candidates in ([1, 2, 1], [2, 1], [3])
    ]
    path = write(tmp_path / "s.parquet", rows, qry_img_path=kind, tgt_img_path=pa.list_(kind))
    read = read_eval(path, SUBSET)
    found = [[int(item) for item in row if item >= 0] for row in read.candidates]
    assert [greys(read, [read.items[item] for item in row]) for row in found] == [[1, 2], [2, 1], [3]]
    assert len(read.items) == 1 + 3


@ALL_FORMS
@pytest.mark.parametrize("many", [True, False])
def test_negatives_are_images_or_lists_of_them(tmp_path: Path, form: str, many: bool) -> None:
    kind, wrap = FORMS[form]
    values = (
        [[wrap(png(1)), wrap(None)], [wrap(png(2)), wrap(png(1))]] if many else [wrap(png(1)), wrap(None)]
    )
    texts = [["", "b"], ["", "d"]] if many else ["", "b"]
    rows = [
        {**train_row(row), "neg_text": texts[row], "neg_image_path": value}
        for row, value in enumerate(values)
    ]
    path = write(tmp_path / "s.parquet", rows, neg_image_path=pa.large_list(kind) if many else kind)
    read = read_train(path, "s")
    expected = [[1, -1], [2, 1]] if many else [[1], [-1]]
    assert [greys(read, read.negatives(row)) for row in range(2)] == expected


def test_what_datasets_writes_is_read(tmp_path: Path) -> None:
    """Through `datasets` as a user would: an Image column, images embedded when it is written."""
    features = {name: datasets.Value("string") for name in ("qry", "pos_text", "pos_image_path")}
    image = datasets.Image()
    rows = {
        "qry": ["q0", "q1"],
        "qry_image_path": [Image.open(io.BytesIO(png(5))), None],
        "pos_text": ["t0", "t1"],
        "pos_image_path": ["", ""],
    }
    written = datasets.Dataset.from_dict(rows, datasets.Features({**features, "qry_image_path": image}))
    written.to_parquet(tmp_path / "s.parquet")
    read = read_train(tmp_path / "s.parquet", "s")
    assert greys(read, [read.queries[row] for row in range(2)]) == [5, -1]


def test_paths_and_embedded_images_may_be_mixed(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 4)
    images = [{"bytes": png(3), "path": "gone.png"}, {"bytes": None, "path": "a.png"}]
    rows = [{**train_row(row), "qry_image_path": image} for row, image in enumerate(images)]
    read = read_train(write(tmp_path / "s.parquet", rows, qry_image_path=IMAGE), "s")
    assert read.paths.to_pylist() == ["a.png"]
    opened = ImageStore(ImageRoot(tmp_path), [read.embedded])
    assert [opened.open(read.queries[row].image).getpixel((0, 0))[0] for row in range(2)] == [3, 4]


def test_paths_without_bytes_must_stay_in_the_root_as_well(tmp_path: Path) -> None:
    rows = [{**train_row(0), "qry_image_path": {"bytes": None, "path": "../a.png"}}]
    path = write(tmp_path / "s.parquet", rows, qry_image_path=IMAGE)
    with pytest.raises(ValueError, match=r"s\.parquet., row 0.*`qry_image_path` leaves the image root"):
        read_train(path, "s")


def test_shards_are_one_subset(tmp_path: Path) -> None:
    for shard, greys_of in enumerate([(1, 2), (2, 3), ()]):
        rows = [{**train_row(grey), "qry_image_path": png(grey)} for grey in greys_of]
        if rows:
            write(tmp_path / "s" / f"{shard}.parquet", rows, qry_image_path=pa.binary())
    write_rows(tmp_path / "s" / "9.parquet", [train_row(4, "a.png")])
    read = read_train(tmp_path / "s", "s")
    assert greys(read, [read.queries[row] for row in range(4)]) == [1, 2, 2, 3]
    assert read.queries[4].image == "a.png"


def test_limit_keeps_the_images_of_the_first_rows(tmp_path: Path) -> None:
    rows = [{**train_row(grey), "qry_image_path": png(grey)} for grey in range(5)]
    path = write(tmp_path / "s.parquet", rows, qry_image_path=pa.binary())
    assert len(read_train(path, "s", limit=2).embedded) == 2


def test_chunks_of_a_column_are_read_one_by_one(tmp_path: Path) -> None:
    """Row groups come as chunks, as bytes of more than 2 GiB do, which do not fit into one."""
    rows = [{**train_row(grey), "qry_image_path": png(grey)} for grey in range(7)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "s.parquet", row_group_size=2)
    read = read_train(tmp_path / "s.parquet", "s")
    assert greys(read, [read.queries[row] for row in range(7)]) == list(range(7))


def test_blind_drops_embedded_query_images(tmp_path: Path) -> None:
    rows = [{**train_row(0), "qry_image_path": png(1)}]
    path = write(tmp_path / "s.parquet", rows, qry_image_path=pa.binary())
    assert read_train(path, "s", blind=True).queries[0] == ("q0", "")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("qry", b"text", "column `qry` must hold text, found binary"),
        ("qry_image_path", 3, r"column `qry_image_path` must hold paths or images \(bytes, .*found int64"),
        ("qry_image_path", [b"x"], "column `qry_image_path` must hold paths or images .*found list"),
        ("qry_image_path", {"data": b"x"}, "column `qry_image_path` must hold .*found struct<data: binary>"),
        ("qry_image_path", {"bytes": 3, "path": ""}, "column `qry_image_path` must hold .*found struct"),
        ("neg_text", [b"x"], "column `neg_text` must hold texts or lists of texts, found list"),
        ("neg_image_path", [[b"x"]], "column `neg_image_path` must hold paths, images .*found list"),
    ],
)
def test_columns_of_a_wrong_type_are_named(tmp_path: Path, name: str, value: Any, message: str) -> None:
    path = write_rows(tmp_path / "s.parquet", [{**train_row(0), name: value}])
    with pytest.raises(ValueError, match=message):
        read_train(path, "s")


def test_a_column_of_texts_is_read_without_a_store(tmp_path: Path) -> None:
    assert read_table(write_rows(tmp_path / "s.jsonl", [{"a": "x"}]), {"a": "image"})[1] is None


def test_broken_and_empty_images_are_errors_that_name_their_key(tmp_path: Path) -> None:
    rows = [{**train_row(row), "qry_image_path": data} for row, data in enumerate([b"", png(1)[:-30]])]
    read = read_train(write(tmp_path / "s.parquet", rows, qry_image_path=pa.binary()), "s")
    for row in range(2):
        image = read.queries[row].image
        with pytest.raises(ImageError, match=f"image `{image}`: "):
            ImageStore(embedded=[read.embedded]).open(image)


def test_only_keys_of_images_that_are_there_are_found() -> None:
    store = EmbeddedImages([to_keys(pa.array([png(grey) for grey in range(20)]))[1]])
    assert all(store.get(key(png(grey))) == png(grey) for grey in range(20))
    assert not any(store.get(key(png(grey))) for grey in range(20, 40))
    for name in (
        "a.png",
        "",
        "sha256:",
        key(png(1)) + "0",
        key(png(1)).replace("sha256", "sha512"),
        "ü" * 71,
    ):
        assert store.get(name) is None
    assert EmbeddedImages([to_keys(pa.array([], pa.binary()))[1]]).get(key(png(1))) is None


def test_a_data_module_needs_no_image_root_for_them(tmp_path: Path) -> None:
    rows = [{**train_row(number), "qry_image_path": png(number)} for number in range(40)]
    path = write(tmp_path / "s.parquet", rows, qry_image_path=pa.binary())
    data = PairDataModule(path, batch_size=2, val_fraction=0.5, num_workers=0)
    data.setup()
    assert data.train_set is not None
    pairs, skipped, _ = data.train_set[Batch([(0, 0), (0, 1)])]
    assert [f"q{pair.query.image.getpixel((0, 0))[0]}" for pair in pairs] == [
        pair.query.text for pair in pairs
    ]
    _, sample = data.eval_sets[0][len(data.eval_sets[0]) - 1]
    assert not isinstance(sample, str), sample
    assert f"q{sample.image.getpixel((0, 0))[0]}" == sample.text
    assert skipped == []
