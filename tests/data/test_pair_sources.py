"""PairDataModule over other sources than MMEB's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from data_roots import collate, write_image, write_rows
from PIL import Image

from fanoise_lightning.data import PairDataModule
from fanoise_lightning.data.sources import files
from fanoise_lightning.data.sources.any_source import open_source
from fanoise_lightning.data.sources.roles import choose_pair
from fanoise_lightning.sample import Pair, Sample


def set_up(source: Any, **options: Any) -> PairDataModule:
    data = PairDataModule(source, **{"batch_size": 2, "num_workers": 0, "collate": collate, **options})
    data.setup("fit")
    return data


def pairs_of(data: PairDataModule) -> list[Pair]:
    """The pairs that are trained on."""
    (batch,) = data.train_set.subsets
    return [data.train_set._open(0, row, []) for row in range(len(batch))]


@pytest.fixture
def captions(tmp_path: Path) -> pd.DataFrame:
    files = [str(write_image(tmp_path / "pictures" / f"{n}.png", n)) for n in range(20)]
    return pd.DataFrame({"id": range(20), "caption": [f"caption {n}" for n in range(20)], "image": files})


def forms(frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
    frame.to_csv(folder / "x.csv", index=False)
    records = frame.to_dict("records")
    opened = [{**row, "image": Image.open(row["image"])} for row in records]
    cast = datasets.Dataset.from_list(records).cast_column("image", datasets.Image())
    return {
        "csv": folder / "x.csv",
        "frame": frame,
        "records": records,
        "opened": opened,
        "opened frame": pd.DataFrame(opened),
        "dataset": cast,
        "pairs": [Pair(Sample(row["caption"]), Sample(image=row["image"])) for row in records],
    }


@pytest.mark.parametrize("form", ["csv", "frame", "records", "opened", "opened frame", "dataset", "pairs"])
def test_captions_and_pictures_are_trained_on_whatever_they_come_in(
    captions: pd.DataFrame, tmp_path: Path, form: str
) -> None:
    data = set_up(forms(captions, tmp_path)[form])
    pairs = pairs_of(data)
    numbers = [int(pair.query.text.removeprefix("caption ")) for pair in pairs]
    assert [pair.target.image.getpixel((0, 0))[0] for pair in pairs] == numbers
    assert all(pair.target.text == "" and pair.query.image is None for pair in pairs)
    held_out = {int(text.split()[1]) for text in data.eval_sets[0].items.texts.to_pylist() if text}
    assert held_out | set(numbers) == set(range(20))
    assert len(held_out) == 2


def test_a_folder_of_pictures_is_pairs_of_their_names(tmp_path: Path) -> None:
    for n in range(20):
        write_image(tmp_path / f"red_mug_{n}.png", n)
    pairs = pairs_of(set_up(tmp_path))
    assert {pair.query.text for pair in pairs} <= {f"red mug {n}" for n in range(20)}
    assert all(pair.query.text.endswith(f" {pair.target.image.getpixel((0, 0))[0]}") for pair in pairs)


def test_a_side_may_have_a_text_and_a_picture(captions: pd.DataFrame) -> None:
    captions["answer"] = [f"answer {n}" for n in range(20)]
    (pair, *_) = pairs_of(set_up(captions, query=["image", "caption"], target="answer"))
    assert pair.query.image is not None
    assert pair.query.text.split()[1] == pair.target.text.split()[1]


def test_negatives_are_values_or_lists(tmp_path: Path) -> None:
    rows = [{"anchor": f"a{n}", "positive": f"p{n}", "negative": [f"n{n}", f"m{n}"]} for n in range(20)]
    flat = [{**row, "negative": row["negative"][0]} for row in rows]
    pairs = [Pair(Sample(f"a{n}"), Sample(f"p{n}"), (Sample(f"n{n}"), Sample(f"m{n}"))) for n in range(20)]
    for source, count in ((rows, 2), (flat, 1), (pairs, 2), (write_rows(tmp_path / "x.jsonl", rows), 2)):
        for pair in pairs_of(set_up(source)):
            number = pair.query.text[1:]
            assert [sample.text for sample in pair.negatives] == [f"n{number}", f"m{number}"][:count]


def test_a_source_of_your_own_is_validated_on(captions: pd.DataFrame) -> None:
    data = set_up(captions.iloc[:12], val=captions.iloc[12:].to_dict("records"))
    assert len(pairs_of(data)) == 12
    assert len(data.eval_sets[0].queries) == 8


def test_a_row_may_lack_its_picture(tmp_path: Path) -> None:
    rows = [
        {"qry": f"q{n}", "pos_text": f"t{n}"} | ({"qry_image_path": "0.png"} if not n else {})
        for n in range(20)
    ]
    write_image(tmp_path / "0.png")
    pairs = pairs_of(set_up(write_rows(tmp_path / "x.jsonl", rows)))
    assert all((pair.query.image is not None) == (pair.query.text == "q0") for pair in pairs)
    assert all(pair.query.text[1:] == pair.target.text[1:] for pair in pairs)


def test_a_tenth_is_held_out_but_no_more_than_a_thousand_pairs() -> None:
    rows = [{"query": f"q{n}", "answer": f"a{n}"} for n in range(10_500)]
    for size, options, expected in ((500, {}, 50), (10_500, {}, 1000), (10_500, {"val_fraction": 0.2}, 2100)):
        assert len(set_up(rows[:size], **options).eval_sets[0].queries) == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"anchor": "a", "positive": "b", "negative": "c"}, (("anchor",), ("positive",), ("negative",))),
        ({"question": "a", "answer": "b", "source": "c"}, (("question",), ("answer",), ())),
        ({"image": "1.png", "url": "u", "caption": "c"}, (("caption",), ("image",), ())),
        ({"Text": "c", "photo": "1.JPG"}, (("Text",), ("photo",), ())),
        ({"image": "1.png", "captions": ["c", "d"]}, (("captions",), ("image",), ())),
        ({"image": "1.png", "name": "c", "tags": ["d"]}, (("name",), ("image",), ())),
        ({"query": "a", "pos": ["b"], "neg": ["c"]}, (("query",), ("pos",), ("neg",))),
        ({"left": "a", "right": "b"}, (("left",), ("right",), ())),
        ({"a": "1.png", "b": "2.png"}, (("a",), ("b",), ())),
        (
            {"query": "q", "query_image": "1.png", "target_image": "2.png"},
            (("query", "query_image"), ("target_image",), ()),
        ),
        (
            {"qry": "a", "qry_image_path": "", "pos_text": "b", "pos_image_path": "", "neg_text": "c"},
            (("qry", "qry_image_path"), ("pos_text", "pos_image_path"), ("neg_text",)),
        ),
    ],
)
def test_sides_are_guessed_and_reported(
    columns: dict[str, str], expected: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "fanoise_lightning"):
        found = choose_pair(open_source([columns]), None, None, None)
    assert tuple(tuple(filter(None, side)) for side in found) == expected
    assert all(f"`{name}`" in caplog.text for side in expected for name in side)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (
            {"a": "x", "b": "y", "c": "z"},
            {},
            r"do not say what is what \(a \(texts\), .*pass `query` and `target`",
        ),
        ({"a": "x", "b": "y"}, {"query": "a"}, "pass `query` and `target` together"),
        ({"a": "x", "b": "y"}, {"query": "a", "target": "a"}, "are the same column, `a`"),
        ({"a": "x", "b": "y"}, {"query": "a", "target": "bb"}, "unknown column `bb`; did you mean `b`"),
        (
            {"a": "x", "b": ["y"], "c": "1.png"},
            {"query": "a", "target": ["b", "c"]},
            "`b` holds lists of texts; a `target` of a text and a picture has one of each",
        ),
        ({"a": "x", "b": "y"}, {"query": ["a", "b"], "target": "b"}, "two columns of texts, `a` and `b`"),
        ({"a": "x", "b": 1}, {"query": "a", "target": "b"}, "`b` holds neither texts nor pictures"),
    ],
)
def test_columns_that_cannot_be_used_are_named(
    row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        set_up([row] * 20, **options)


def test_a_wrong_image_root_stops_the_setup(captions: pd.DataFrame, tmp_path: Path) -> None:
    captions["image"] = [f"{n}.png" for n in range(20)]
    with pytest.raises(FileNotFoundError, match=r"`DataFrame`: 0 of 20 pictures found under"):
        set_up(captions, image_root=tmp_path)
    assert len(pairs_of(set_up(captions, image_root=tmp_path / "pictures"))) == 18


def test_equal_captions_leave_nothing_to_find() -> None:
    rows = [{"query": "same", "target": f"t{n}"} for n in range(5000)]
    with pytest.raises(ValueError, match="1 different queries and 5000 different targets: no split leaves"):
        set_up(rows)


def test_the_images_of_arrays_are_kept_exactly() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 7, 3), dtype=np.uint8)
    rows = [{"caption": str(n), "image": image} for n, image in enumerate(images)]
    for pair in pairs_of(set_up(rows)):
        assert np.array_equal(np.asarray(pair.target.image), images[int(pair.query.text)])


@pytest.mark.parametrize("form", ["rows", "jsonl", "frame"])
def test_each_value_of_a_list_is_a_pair(tmp_path: Path, form: str) -> None:
    rows = [
        {"query": f"q{n}", "pos": [f"p{n}-{k}" for k in range(1 + n % 3)], "neg": [f"n{n}"]}
        for n in range(20)
    ]
    rows[5]["pos"] = []
    sources = {
        "rows": rows,
        "jsonl": write_rows(tmp_path / "x.jsonl", rows),
        "frame": pd.DataFrame(rows),
    }
    with pytest.warns(UserWarning, match="1 of 37 rows are skipped"):
        data = set_up(sources[form])
    found = {
        (pair.query.text, pair.target.text, *(each.text for each in pair.negatives))
        for pair in pairs_of(data)
    }
    (validation,) = data.eval_sets
    texts = validation.items.texts.to_pylist()
    for query, candidates, right in zip(validation.queries, validation.candidates, validation.num_right):
        text = texts[query]
        found |= {(text, texts[item], "n" + text[1:]) for item in candidates[:right]}
    expected = {(row["query"], target, *row["neg"]) for row in rows for target in row["pos"]}
    assert found == expected


def test_the_captions_of_a_picture_are_known_as_right(tmp_path: Path) -> None:
    rows = []
    for n in range(20):
        file = write_image(tmp_path / f"{n}.png", n)
        rows.append({"image": str(file), "captions": [f"{k} of {n}" for k in "abcde"]})
    for options in ({"query": "image", "target": "captions"}, {"query": "captions", "target": "image"}):
        (validation,) = set_up(rows, val_fraction=0.2, **options).eval_sets
        width = 5 if options["query"] == "image" else 1
        assert validation.num_right.tolist() == [width] * (20 // width)


@pytest.mark.parametrize("form", ["rows", "csv", "parquet"])
def test_numbered_negatives_are_read_together(tmp_path: Path, form: str) -> None:
    rows = [
        {
            "anchor": f"a{n}",
            "positive": f"p{n}",
            "negative_1": f"x{n}",
            "negative_2": f"y{n}" if n % 2 else "",
        }
        for n in range(20)
    ]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    sources = {"rows": rows, "csv": tmp_path / "x.csv", "parquet": tmp_path / "x.parquet"}
    for options in ({}, {"query": "anchor", "target": "positive", "negatives": "negative"}):
        for pair in pairs_of(set_up(sources[form], **options)):
            number = int(pair.query.text[1:])
            expected = [f"x{number}"] + [f"y{number}"] * (number % 2)
            assert [sample.text for sample in pair.negatives] == expected
    one = pairs_of(set_up(sources[form], query="anchor", target="positive", negatives="negative_1"))
    assert all([sample.text for sample in pair.negatives] == [f"x{pair.query.text[1:]}"] for pair in one)


@pytest.mark.parametrize("name", ["neg_text", "pos_image_path"])
def test_a_column_that_comes_late_in_json_lines_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(files, "SAMPLE", 4)
    rows = [{"qry": f"query {n}", "pos_text": f"target {n}"} for n in range(15)]
    rows[13][name] = "late.png"
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    columns = choose_pair(open_source(path), None, None, None)
    assert name in {column for side in columns for column in side}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("hdr.csv", "q,t\n", r"hdr\.csv` has a header and no rows"),
        ("space.csv", "q, t\na, b\n", "column ' t' begins or ends with white space"),
        (
            "deep.json",
            "[" * 100_000 + "]" * 100_000,
            r"deep\.json` cannot be read.*nested too deeply",
        ),
    ],
)
def test_odd_files_are_told(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        PairDataModule(tmp_path / name, query="q", target="t").read_train()


def test_rows_that_are_left_out_are_in_the_line_of_the_split(tmp_path: Path, caplog: Any) -> None:
    rows = [{"q": f"q{n}", "t": f"t{n}" if n not in (3, 7) else None} for n in range(40)]
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="2 of 40 rows are skipped"):
        PairDataModule(rows, query="q", target="t").read_eval()
    assert "34 pairs to train on, 4 to validate on" in caplog.text
    assert "; 2 rows without a query or target are left out" in caplog.text


def test_addresses_are_shown_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"q": f"q{n}", "t": f"http://x/{n}.png"} for n in range(40)]
    with pytest.raises(FileNotFoundError, match=r"`http://x/0\.png`; addresses are not opened"):
        PairDataModule(rows, query="q", target="t", image_root=tmp_path).read_train()


def test_an_option_that_is_no_number_is_named() -> None:
    with pytest.raises(TypeError, match="`batch_size` must be a number, got '32'"):
        PairDataModule([], batch_size="32")  # type: ignore[arg-type]


def test_pictures_beside_shards_of_rows_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "rows.parquet")
    write_image(tmp_path / "a.png", 0)
    with pytest.raises(ValueError, match=r"holds pictures \(`a\.png`\) and rows \(`rows\.parquet`\)"):
        open_source(tmp_path)
