"""The rows of a catalogue from any source: the same items, whatever they come in."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_roots import write_image
from PIL import Image

from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.items import read_items
from fanoise_lightning.data.sources import files, memory
from fanoise_lightning.data.sources.any_source import open_source
from fanoise_lightning.data.sources.source import kind_of_values
from fanoise_lightning.sample import Sample

CAPTIONS = ["a red mug", 'a "blue" mug,\nwith a line', "007", "NA", "ein grüner Becher"]


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    for number in range(len(CAPTIONS)):
        write_image(tmp_path / "images" / f"{number}.png", 40 * number)
    return [
        {"id": f"p{number}", "caption": caption, "image": f"images/{number}.png", "price": 1.5}
        for number, caption in enumerate(CAPTIONS)
    ]


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


class ViewFrame:
    """A frame with polars' types, which Arrow's own tables rarely have."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        table = pa.Table.from_pylist(rows)
        for place, name in enumerate(table.column_names):
            if pa.types.is_string(table[name].type):
                views = table[name].combine_chunks().cast(pa.string_view())
                if name == "caption":  # as polars has a Categorical
                    views = pa.DictionaryArray.from_arrays(pa.array(range(len(rows)), pa.uint32()), views)
                table = table.set_column(place, name, views)
        self._table = table

    def __arrow_c_stream__(self, schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(schema)


def write_packed(path: Path, rows: list[dict[str, Any]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def pack(path: Path, name: str) -> Path:
    packed = path.with_name(name)
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


CSV_FORMS = ("csv", "tsv", "csv.gz")
FORMS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "csv": lambda folder, rows: write_csv(folder / "x.csv", rows),
    "tsv": lambda folder, rows: write_csv(folder / "x.TSV", rows, "\t"),
    "csv.gz": lambda folder, rows: pack(write_csv(folder / "x.csv", rows), "y.CSV.GZ"),
    "jsonl": lambda folder, rows: str(write_lines(folder / "x.jsonl", rows)),
    "jsonl.gz": lambda folder, rows: write_packed(folder / "x.jsonl.gz", rows),
    "json": lambda folder, rows: write_json(folder / "x.json", rows),
    "parquet": lambda folder, rows: write_parquet(folder / "x.parquet", rows),
    "DataFrame": lambda folder, rows: pd.DataFrame(rows),
    "Arrow": lambda folder, rows: pa.Table.from_pylist(rows),
    "views": lambda folder, rows: ViewFrame(rows),
    "Dataset": lambda folder, rows: datasets.Dataset.from_list(rows),
    "list": lambda folder, rows: rows,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_source_gives_the_same_items(tmp_path: Path, rows: list[dict[str, Any]], form: str) -> None:
    items = read_items(FORMS[form](tmp_path, rows), "caption", "image", image_root=tmp_path)
    assert items.ids.to_pylist() == [row["id"] for row in rows]
    expected = [(row["caption"], row["image"]) for row in rows]
    assert [tuple(reference) for reference in items.references.to_list()] == expected
    again = pickle.loads(pickle.dumps(items))
    assert [again[index].image.getpixel((0, 0))[0] for index in range(len(again))] == [0, 40, 80, 120, 160]


@pytest.mark.parametrize("form", FORMS)
def test_whole_numbers_are_ids(tmp_path: Path, rows: list[dict[str, Any]], form: str) -> None:
    numbered = [{**row, "id": number} for number, row in enumerate(rows, start=10**12)]
    items = read_items(FORMS[form](tmp_path, numbered), text="caption")
    assert items.ids.to_pylist() == [str(row["id"]) for row in numbered]


@pytest.mark.parametrize("form", FORMS)
def test_a_duplicate_id_is_refused_with_both_rows(
    tmp_path: Path, rows: list[dict[str, Any]], form: str
) -> None:
    rows[3]["id"] = rows[1]["id"]
    # lines count from 1; a spreadsheet counts the header, too
    first, again = (2, 4) if "jsonl" in form else (3, 5) if form in CSV_FORMS else (1, 3)
    with pytest.raises(ValueError, match=rf"id 'p1' is given twice, in .* {first} and in .* {again};"):
        read_items(FORMS[form](tmp_path, rows), text="caption")


@pytest.mark.parametrize("form", FORMS)
def test_a_misspelled_column_names_the_nearest(tmp_path: Path, rows: list[dict[str, Any]], form: str) -> None:
    with pytest.raises(ValueError, match="unknown column `captoin`; did you mean `caption`"):
        read_items(FORMS[form](tmp_path, rows), text="captoin")


@pytest.mark.parametrize("form", FORMS)
def test_a_column_of_numbers_is_no_text(tmp_path: Path, rows: list[dict[str, Any]], form: str) -> None:
    if form in CSV_FORMS:
        assert read_items(FORMS[form](tmp_path, rows), text="price")[0].text == "1.5"
        return
    with pytest.raises(ValueError, match="column `price` holds neither texts nor pictures"):
        read_items(FORMS[form](tmp_path, rows), text="price")


@pytest.mark.parametrize("form", ["jsonl", "json", "list", "DataFrame"])
def test_mixed_types_are_refused_with_the_row(tmp_path: Path, rows: list[dict[str, Any]], form: str) -> None:
    rows[2]["caption"] = 7
    row = "line 3" if form == "jsonl" else "row 2"
    with pytest.raises(ValueError, match=f"{row}: column `caption` must hold text, got 7"):
        read_items(FORMS[form](tmp_path, rows), text="caption")


def test_a_picture_is_opened_in_whatever_it_comes(tmp_path: Path) -> None:
    file = write_image(tmp_path / "a.png", 77)
    picture = Image.open(file)
    array = np.full((4, 4, 3), 77, np.uint8)
    sources = [[picture], [array], [file.read_bytes()], [str(file)], [file], [Sample(image=picture)]]
    structs = datasets.Dataset.from_dict({"x": [str(file)]}).cast_column("x", datasets.Image())
    for source in (*sources, structs, pd.DataFrame({"x": [picture]}), [{"x": array}, {"x": picture}]):
        items = read_items(source)
        colours = [items[index].image.getpixel((0, 0)) for index in range(len(items))]
        assert colours == [(77, 77, 77)] * len(source)


def test_a_class_label_is_its_name() -> None:
    kinds = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"])})
    items = read_items(datasets.Dataset.from_dict({"label": [1, 0]}, features=kinds))
    assert items.references.texts.to_pylist() == ["dog", "cat"]


def test_rows_with_neither_text_nor_picture_are_skipped_and_counted() -> None:
    with pytest.warns(UserWarning, match="1 of 3 rows are skipped"):
        items = read_items([{"id": "a", "text": "x"}, {"id": "b", "text": " "}, {"id": "c", "text": "y"}])
    assert items.ids.to_pylist() == ["a", "c"]
    with pytest.raises(ValueError, match="is empty"):
        read_items([])


def test_a_long_text_and_many_equal_texts_are_read(tmp_path: Path) -> None:
    long = "x" * 100_000
    rows = [{"text": long}, *({"text": "same"} for _ in range(3000))]
    items = read_items(write_lines(tmp_path / "x.jsonl", rows))
    assert items[0].text == long
    assert len(items) == 3001


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    for name in ("red_mug", "blue mug", ".hidden"):
        write_image(tmp_path / "names" / f"{name}.png")
    (tmp_path / "names" / "notes.md").write_text("not a picture")
    items = read_items(tmp_path / "names", text="text", image="image")
    assert items.ids.to_pylist() == ["blue mug.png", "red_mug.png"]
    assert [items[index].text for index in range(2)] == ["blue mug", "red mug"]
    for name in ("red_mug/1.png", "red_mug/2.JPG", "cups/deep/3.png"):
        write_image(tmp_path / "labels" / "all" / name)
    items = read_items(tmp_path / "labels", text="text", image="image")
    assert items.references.texts.to_pylist() == ["cups", "red mug", "red mug"]
    write_image(tmp_path / "labels" / "all" / "4.png")
    with pytest.raises(
        ValueError, match=r"pictures in subfolders .* and others beside these \(`all/4.png`\)"
    ):
        read_items(tmp_path / "labels")
    (tmp_path / "labels" / "metadata.csv").write_text("file_name,text\nall/4.png,four\n")
    items = read_items(tmp_path / "labels", text="text", image="file_name")
    assert [tuple(reference) for reference in items.references.to_list()] == [("four", "all/4.png")]
    assert items[0].image.size == (4, 4)


def test_the_texts_of_a_folder_are_in_files_beside_the_pictures(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        write_image(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.txt").write_text(f"caption of {name}\n")
    (tmp_path / "licence.txt").write_text("not a caption")
    items = read_items(tmp_path, text="text", image="image")
    assert [tuple(reference) for reference in items.references.to_list()] == [
        (f"caption of {name}", f"{name}.jpg") for name in ("a/1", "a/2", "b/1")
    ]
    (tmp_path / "a" / "2.txt").unlink()
    with pytest.raises(ValueError, match=r"have a text beside them, but `a/2\.txt` does not exist"):
        read_items(tmp_path)


def test_a_link_to_a_folder_is_reported_and_its_pictures_can_be_named(tmp_path: Path) -> None:
    for name in ("labels/cups/1.png", "disk/2.png"):
        write_image(tmp_path / name)
    folder, linked = tmp_path / "labels", tmp_path / "disk" / "2.png"
    (folder / "mugs").symlink_to(tmp_path / "disk")
    with pytest.warns(UserWarning, match="labels/mugs` is a link to a folder, which is not followed"):
        items = read_items(folder, text="text", image="image")
    assert items.ids.to_pylist() == ["cups/1.png"]
    (folder / "metadata.csv").write_text(f"file_name,text\ncups/1.png,cups\n{linked},mugs\n")
    items = read_items(folder, text="text", image="file_name")
    assert [items[number].image.size for number in range(2)] == [(4, 4)] * 2


def test_splits_are_not_labels(tmp_path: Path) -> None:
    for name in ("train/mug/1.jpg", "val/mug/2.jpg"):
        write_image(tmp_path / name)
    with pytest.raises(ValueError, match="has the pictures of train and val in subfolders: pass one"):
        read_items(tmp_path)
    write_image(tmp_path / "mug" / "3.jpg")  # something else than splits
    assert set(read_items(tmp_path, text="text").references.texts.to_pylist()) == {"train", "val", "mug"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_csv_file_is_read_as_excel_writes_it(
    tmp_path: Path, rows: list[dict[str, Any]], delimiter: str, start: bytes
) -> None:
    path = write_csv(tmp_path / "x.csv", rows, delimiter)
    path.write_bytes(start + path.read_bytes())
    assert read_items(path, text="caption").references.texts.to_pylist() == CAPTIONS


def test_the_captions_of_coco_are_rows(tmp_path: Path) -> None:
    found = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 5, "file_name": "5.jpg"}],
        "annotations": [{"image_id": image, "caption": f"{n} of {image}"} for image in (5, 7) for n in "ab"],
    }
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps(found))
    table, _ = open_source(path).read({"caption": "text", "image": "image"})
    assert table["caption"].to_pylist() == ["a of 5", "b of 5", "a of 7", "b of 7"]
    assert table["image"].to_pylist() == ["5.jpg", "5.jpg", "7.jpg", "7.jpg"]
    found["annotations"][0].pop("caption")  # type: ignore[union-attr]
    path.write_text(json.dumps(found))
    with pytest.raises(
        ValueError, match=r"must hold a list of objects.* found one object of images, annotations"
    ):
        open_source(path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png")

    def refuse(folder: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.scandir", refuse)  # root may read everything
    with pytest.raises(PermissionError, match=r"give yourself the right to read it: .*" + tmp_path.name):
        open_source(tmp_path)


def test_an_unreadable_shard_in_the_middle_is_named(tmp_path: Path) -> None:
    for name in "abc":
        pq.write_table(pa.table({"text": [name]}), tmp_path / f"{name}.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(ValueError, match=r"b\.parquet` cannot be read as parquet"):
        read_items(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"a,b\n1,2\n1,2,3\n", r"x\.csv` cannot be read as a table: .*Expected 2 columns, got 3"),
        ("x.csv", b"", r"x\.csv` cannot be read as a table: Empty CSV file"),
        ("x.csv", b"a,a\n1,2\n", r"x\.csv`: column `a` appears 2 times"),
        ("x.csv", "a,b\n1,ß\n".encode("utf-16"), r"x\.csv` is in UTF-16: save it as UTF-8"),
        ("x.csv", b"sep=;\na;b\n1;2\n", r"x\.csv` begins with sep=;, which is no row: remove it"),
        ("x.csv", b"a red mug,1.JPG\na cup,2.JPG\n", r"x\.csv` has no names of columns: .* `1\.JPG`"),
        ("x.tsv", b"1.jpg#0\ta red mug\n", r"x\.tsv` has no names of columns: .* `1\.jpg#0`"),
        ("x.csv", b"a,b\n1,2\n3,4,5\n", r"cannot be read as a table: .*Row #3: Expected 2 columns, got 3"),
        ("x.csv", b'a,b\n"1,2\n' + b"3,4\n" * 2**19, r"cannot be read as a table: .*a quote is not closed"),
        ("x.csv.gz", b"\x1f\x8bcut", r"x\.csv\.gz` cannot be read as a table"),
        ("x.csv", "a\nß\n".encode("latin-1"), r"x\.csv` cannot be read as a table: .*save it as UTF-8"),
        ("x.jsonl", b"", r"x\.jsonl` is empty"),
        ("x.jsonl", b'[{"text": "a"}]', r"x\.jsonl` has no objects, one on each line"),
        ("x.jsonl", b'{"text": "a"},\n{"text": "b"}', r"x\.jsonl`, line 1: Extra data"),
        ("x.jsonl", b'{"text": "a"},\n' * 2, r"has no objects, one on each line; .*, line 1: Extra data"),
        ("x.jsonl", '{"text": "ß"}'.encode("latin-1"), r"has no objects, .*, line 1: it is not in UTF-8"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', r"x\.jsonl`, line 2: "),
        ("x.json", b'{"text": "a"}\n{"text": "b"}\n', r"x\.json` cannot be read as JSON: .*end in \.jsonl"),
        ("x.json", b'{"text": "a"}', r"x\.json` must hold a list of objects.*found one object of text"),
        ("x.xlsx", b"", r"x\.xlsx` is no file of rows: expected one that ends in \.jsonl, .*\.tsv"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_items(tmp_path / name)


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a source of rows is a path.*, got int"):
        open_source(5)
    with pytest.raises(FileNotFoundError, match=r"`nothing/here\.csv` does not exist"):
        open_source("nothing/here.csv")
    with pytest.raises(FileNotFoundError, match="`` does not exist"):
        open_source("")
    with pytest.raises(FileNotFoundError, match="does not exist: addresses are not opened"):
        open_source("https://example.org/pairs.csv")
    with pytest.raises(TypeError, match=r"got dict; make it one of these: .*`pandas\.DataFrame\(columns\)`"):
        open_source({"text": ["a"]})
    with pytest.raises(TypeError, match="DatasetDict; expected one of its splits: train"):
        open_source(datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": ["x"]})}))
    with pytest.raises(TypeError, match="row 1 of the list is a int, and row 0 is a str"):
        open_source(["a", 5])
    with pytest.raises(TypeError, match="row 0 of the list is a int; expected a dict, a `Pair`"):
        open_source([5])


def test_a_wrong_image_root_is_found_before_the_first_picture(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"0 of 5 pictures found under `.*empty`.*`images/0\.png`; pass"
    ):
        read_items(rows, image_root=tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"missing: `7`; .* put the suffix of the files"):
        read_items([{"image": "7"}])
    with pytest.raises(FileNotFoundError, match="addresses are not opened: download"):
        read_items([{"image": "https://example.org/1.png"}])


def test_absolute_paths_are_followed_in_rows_of_the_user_alone(tmp_path: Path) -> None:
    file = write_image(tmp_path / "a.png", 9)
    (tmp_path / "other").mkdir()
    items = read_items([{"image": str(file)}], image_root=tmp_path / "other")
    assert items[0].image.getpixel((0, 0)) == (9, 9, 9)
    file.unlink()
    with pytest.raises(ImageError, match="no such file"):
        items[0]
    with pytest.raises(ValueError, match=r"row 0: the path '\.\./a\.png' in `image` leaves the image root"):
        read_items([{"image": "../a.png"}])


def test_rows_of_the_hub_have_no_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_image(tmp_path / "a.png")
    dataset = datasets.Dataset.from_dict({"image": [str(file)]}).cast_column("image", datasets.Image())
    asked = []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or dataset)
    with pytest.raises(ValueError, match="leaves the image root"):
        read_items("some/pictures")
    assert asked == [("some/pictures", "train")]


def test_the_guess_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "fanoise_lightning"):
        read_items([{"key": "k", "title": "a", "price": 1}])
    assert "items are `title` (text), ids `key` (not used: price)" in caplog.text
    with pytest.raises(
        ValueError, match=r"do not say what is what \(a \(texts\), b \(texts\)\): pass `text`"
    ):
        read_items([{"a": "x", "b": "y"}])


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("jsonl.gz", "views")])
@pytest.mark.parametrize("empty", ["", None, []])
def test_a_column_is_known_by_its_first_value_wherever_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, empty: Any
) -> None:
    for module in (files, memory):
        monkeypatch.setattr(module, "SAMPLE", 4)
    late: Any = "b.png" if empty != [] else ["b.png"]
    if form in CSV_FORMS and empty == []:
        pytest.skip("a CSV file has no lists")
    rows = [{"text": "x", "thumb": empty} for _ in range(14)]
    rows[11]["thumb"] = late
    kinds = open_source(FORMS[form](tmp_path, rows)).kinds
    assert {name: kinds[name] for name in rows[0]} == {
        "text": "text",
        "thumb": "images" if empty == [] else "image",
    }


@pytest.mark.parametrize("late", ["b.png", 7, {"de": "x"}, "2020-01-01", ["a", "b"]])
def test_a_column_of_json_lines_may_begin_in_any_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: Any
) -> None:
    monkeypatch.setattr(files, "SAMPLE", 4)
    rows: list[dict[str, Any]] = [{"text": "x"} for _ in range(15)]
    rows[13]["thumb"] = late
    expected = {"text": "text", "thumb": kind_of_values("thumb", [late])}
    assert open_source(write_lines(tmp_path / "x.jsonl", rows)).kinds == expected
    rows[13]["text"] = 5  # of two types, which Arrow does not read
    assert open_source(write_lines(tmp_path / "x.jsonl", rows)).kinds == expected


def test_a_late_column_of_a_later_shard_is_found(tmp_path: Path) -> None:
    for name, thumb in (("a", None), ("b", ""), ("c", "c.png")):
        pq.write_table(
            pa.table({"text": ["x"], "thumb": pa.array([thumb], pa.string())}), tmp_path / f"{name}.parquet"
        )
    assert open_source(tmp_path).kinds == {"text": "text", "thumb": "image"}


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, ""])
def test_whatever_stands_for_a_missing_value_is_one(missing: Any) -> None:
    pictures = [np.full((4, 4, 3), 7, np.uint8), missing]
    with pytest.warns(UserWarning, match="1 of 2 rows are skipped"):
        assert len(read_items([{"image": picture} for picture in pictures])) == 1
    with pytest.warns(UserWarning, match="1 of 2 rows are skipped"):
        assert len(read_items([{"text": missing}, {"text": "x"}])) == 1


def test_a_number_is_no_missing_picture() -> None:
    with pytest.raises(ValueError, match=r"row 1: column `image`.* is float"):
        read_items([{"image": np.zeros((4, 4, 3), np.uint8)}, {"image": 3.5}])


def test_a_label_of_minus_one_is_none() -> None:
    kinds = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"])})
    with pytest.warns(UserWarning, match="1 of 2 rows are skipped"):
        items = read_items(datasets.Dataset.from_dict({"label": [-1, 1]}, features=kinds))
    assert items.references.texts.to_pylist() == ["dog"]


def test_a_single_column_is_a_source() -> None:
    assert read_items(pd.Series(["a red mug", "a blue mug"])).references.texts.to_pylist() == [
        "a red mug",
        "a blue mug",
    ]


def test_lists_are_told_from_single_values(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": ["y", "z"], "c": ["1.png"]}]
    for source in (
        rows,
        write_lines(tmp_path / "x.jsonl", rows),
        write_parquet(tmp_path / "x.parquet", rows),
    ):
        kinds = open_source(source).kinds
        assert {name: kinds[name] for name in "abc"} == {"a": "text", "b": "texts", "c": "images"}


def test_a_column_of_blanks_is_one_of_texts() -> None:
    assert open_source([{"note": " "}, {"note": ""}]).kinds == {"note": "text"}
