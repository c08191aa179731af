from __future__ import annotations

import hashlib
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from data_roots import eval_row, train_row, write_rows
from hypothesis import given
from hypothesis import strategies as st

from fanoise_lightning.data.rows.records import read_eval, read_train
from fanoise_lightning.data.rows.references import (
    Reference,
    References,
    identity,
    spell_paths,
    unique_references,
)
from fanoise_lightning.subset import Subset

SUBSET = Subset("s", "retrieval", "IND")
BOTH = pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])


def make_references(pairs: list[tuple[str, str]]) -> References:
    return References(*(pa.array([pair[part] for pair in pairs], pa.large_string()) for part in (0, 1)))


def candidates(rows: Any, query: int) -> list[tuple[str, str]]:
    return [tuple(rows.items[index]) for index in rows.candidates[query] if index >= 0]


@BOTH
def test_train_rows_become_references(tmp_path: Path, suffix: str) -> None:
    path = write_rows(tmp_path / f"s{suffix}", [train_row(1, "a.png"), train_row(2, "", "dir/b.png")])
    rows = read_train(path, "s")
    assert [tuple(rows.queries[row]) for row in range(2)] == [("q1", "a.png"), ("q2", "")]
    assert [tuple(rows.targets[row]) for row in range(2)] == [("t1", ""), ("t2", "dir/b.png")]
    assert rows.negatives(0) == []
    assert rows.paths.to_pylist() == ["a.png", "dir/b.png"]


@BOTH
def test_negatives_are_texts_or_lists(tmp_path: Path, suffix: str) -> None:
    one = [{**train_row(1), "neg_text": "n1", "neg_image_path": None}, {**train_row(2), "neg_text": ""}]
    rows = read_train(write_rows(tmp_path / f"one{suffix}", one), "s")
    assert [rows.negatives(row) for row in range(2)] == [[("n1", "")], []]
    many = [
        {**train_row(1), "neg_text": ["<|image_1|> n1", "n2"], "neg_image_path": ["1.png", ""]},
        {**train_row(2), "neg_text": [], "neg_image_path": []},
    ]
    rows = read_train(write_rows(tmp_path / f"many{suffix}", many), "s")
    assert [rows.negatives(row) for row in range(2)] == [[("n1", "1.png"), ("n2", "")], []]
    assert rows.paths.to_pylist() == ["1.png"]


@BOTH
def test_negatives_of_unequal_lengths_are_an_error(tmp_path: Path, suffix: str) -> None:
    row = {**train_row(1), "neg_text": ["a", "b"], "neg_image_path": ["1.png"]}
    with pytest.raises(ValueError, match="`neg_text` has 2 entries, `neg_image_path` has 1"):
        read_train(write_rows(tmp_path / f"s{suffix}", [row]), "s")


@pytest.mark.parametrize(
    ("stored", "resolved"),
    [
        ("<|image_1|> Find a caption.\n", "Find a caption.\n"),
        ("<|image_1|>\nFind", "Find"),
        ("Like <|image_1|> but red", "Like but red"),
        ("no placeholder <|image|>", "no placeholder <|image|>"),
    ],
)
def test_placeholders_are_dropped(tmp_path: Path, stored: str, resolved: str) -> None:
    path = write_rows(tmp_path / "s.jsonl", [{**train_row(1, "a.png"), "qry": stored}])
    assert read_train(path, "s").queries[0].text == resolved


def test_placeholder_without_an_image_is_reported(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.jsonl", [{**train_row(1), "qry": "<|image_1|> Find"}])
    with pytest.warns(UserWarning, match="`s`: 1 texts in `qry` mention an image"):
        assert read_train(path, "s").queries[0] == ("Find", "")


def test_rows_without_text_and_image_are_skipped_and_counted(tmp_path: Path) -> None:
    empty = [{**train_row(2), "qry": "<|image_1|> "}, {**train_row(3), "pos_text": None}]
    path = write_rows(tmp_path / "s.jsonl", [train_row(1), *empty, train_row(4)])
    with pytest.warns(UserWarning, match=r"2 of 4 rows are skipped because.*s\.jsonl., line 2"):
        rows = read_train(path, "s")
    assert [rows.queries[row].text for row in range(len(rows))] == ["q1", "q4"]
    assert rows.where(1) == f"subset `s`, `{path}`, line 4"


def test_an_image_alone_is_a_reference(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.jsonl", [{**train_row(1, "a.png"), "qry": "<|image_1|>"}])
    assert read_train(path, "s").queries[0] == ("", "a.png")


@BOTH
def test_an_empty_subset_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = write_rows(tmp_path / f"s{suffix}", [{**train_row(2), "qry": ""}])
    with pytest.raises(
        ValueError, match="subset `s` is empty: in each of its 1 rows, a query or target has neither"
    ):
        read_train(path, "s")


def test_a_file_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="subset `s` is empty: no rows"):
        read_eval(write_rows(tmp_path / "s.jsonl", []), SUBSET)


@BOTH
@pytest.mark.parametrize(
    "path",
    [
        "/etc/x.png",
        "../x.png",
        "a/../../x.png",
        "C:/x.png",
        "a\\..\\x.png",
        "\\x.png",
        "./C:/x.png",
        ".//../x.png",
        "\u212a:/x.png",  # a Kelvin sign: K in NFC
    ],
)
def test_paths_that_leave_the_root_name_file_and_row(tmp_path: Path, path: str, suffix: str) -> None:
    number = "line 2" if suffix == ".jsonl" else "row 1"
    train = write_rows(tmp_path / f"train{suffix}", [train_row(1), train_row(2, path)])
    with pytest.raises(ValueError, match=f"train{suffix}., {number}.*`qry_image_path` leaves the image root"):
        read_train(train, "s")
    bad = {**eval_row(2, [1, 2]), "tgt_img_path": ["", path]}
    evaluation = write_rows(tmp_path / f"eval{suffix}", [eval_row(1, [1, 2, 3]), bad])
    with pytest.raises(ValueError, match=f"eval{suffix}., {number}.*`tgt_img_path` leaves the image root"):
        read_eval(evaluation, SUBSET)


def test_dots_inside_names_are_harmless(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.jsonl", [train_row(1, "a..b/..c.png")])
    assert read_train(path, "s").queries[0].image == "a..b/..c.png"


SPELLINGS = {
    "a/i.png": [
        "./a/i.png",
        "a//i.png",
        "a/./i.png",
        ".//a/./i.png",
        "a\\i.png",
        ".\\a\\\\i.png",
        "a/i.png/",
    ],
    "é.png": ["e\u0301.png", "./é.png", ".\\e\u0301.png"],
    ".a/..b/c..": ["./.a/..b/c.."],
    ".": ["./", "."],  # no file, and not the same as no image
    f"sha256:{'0' * 64}": [f"sha256:{'0' * 64}"],
}


@BOTH
@pytest.mark.parametrize("path", SPELLINGS)
def test_spellings_of_a_path_are_one_image(tmp_path: Path, path: str, suffix: str) -> None:
    spellings = [path, *SPELLINGS[path]]
    train = [
        {**train_row(1, each, each), "neg_text": ["n", "n"], "neg_image_path": [each, "other.png"]}
        for each in spellings
    ]
    rows = read_train(write_rows(tmp_path / f"t{suffix}", train), "s")
    for at in range(len(spellings)):
        assert rows.queries[at] == ("q1", path)
        assert rows.targets[at] == ("t1", path)
        assert rows.negatives(at) == [("n", path), ("n", "other.png")]
    assert path in rows.paths.to_pylist() or path.startswith("sha256:")
    evaluation = {**eval_row(1, [1] * len(spellings)), "tgt_img_path": spellings}
    read = read_eval(write_rows(tmp_path / f"e{suffix}", [evaluation]), SUBSET)
    assert candidates(read, 0) == [("t1", path)]


paths = st.text("ab./\\é\u0301", max_size=8)


@given(st.lists(paths, max_size=6))
def test_paths_are_spelled_as_one_by_one(written: list[str]) -> None:
    expected = [
        unicodedata.normalize(
            "NFC", "/".join(p for p in path.replace("\\", "/").split("/") if p not in ("", "."))
        )
        for path in written
    ]
    chosen = [
        (path, right)
        for path, right in zip(written, expected)
        if right and path[0] not in "/\\" and ".." not in path.replace("\\", "/").split("/")
    ]
    found = spell_paths(pa.array([path for path, _ in chosen], pa.large_string()))
    assert found.to_pylist() == [right for _, right in chosen]


@BOTH
def test_eval_rows_index_unique_items(tmp_path: Path, suffix: str) -> None:
    rows = [eval_row(0, [1, 2, 3], "0.png"), eval_row(1, [2, 1], "1.png"), eval_row(1, [4], "1.png")]
    read = read_eval(write_rows(tmp_path / f"s{suffix}", rows), SUBSET)
    assert [tuple(read.items[index]) for index in read.queries] == [
        ("q0", "0.png"),
        ("q1", "1.png"),
        ("q1", "1.png"),
    ]
    assert read.candidates.shape == (3, 3)
    assert [candidates(read, query) for query in range(3)] == [
        [("t1", ""), ("t2", ""), ("t3", "")],
        [("t2", ""), ("t1", "")],
        [("t4", "")],
    ]
    assert len(read.items) == 2 + 4


def test_a_copy_of_the_ground_truth_is_no_candidate(tmp_path: Path) -> None:
    read = read_eval(write_rows(tmp_path / "s.jsonl", [eval_row(0, [1, 2, 1, 3, 2])]), SUBSET)
    assert candidates(read, 0) == [("t1", ""), ("t2", ""), ("t3", "")]


@BOTH
def test_candidate_lists_of_unequal_length_are_an_error(tmp_path: Path, suffix: str) -> None:
    rows = [eval_row(0, [1, 2]), {**eval_row(1, [1, 2]), "tgt_img_path": [""]}]
    with pytest.raises(ValueError, match=r"(line 2|row 1): `tgt_text` has 2 entries, `tgt_img_path` has 1"):
        read_eval(write_rows(tmp_path / f"s{suffix}", rows), SUBSET)


def test_eval_rows_with_an_empty_query_or_candidate_are_skipped(tmp_path: Path) -> None:
    hole = {**eval_row(1, [1, 2]), "tgt_text": ["", "t2"]}
    path = write_rows(tmp_path / "s.jsonl", [eval_row(0, [1]), hole, eval_row(2, []), eval_row(3, [3, 1])])
    with pytest.warns(UserWarning, match="2 of 4 rows are skipped because"):
        read = read_eval(path, SUBSET)
    assert [read.items[index].text for index in read.queries] == ["q0", "q3"]
    assert candidates(read, 1) == [("t3", ""), ("t1", "")]


def test_blind_drops_query_images_only(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "t.jsonl", [train_row(1, "a.png", "b.png")])
    assert read_train(train, "s", blind=True).queries[0] == ("q1", "")
    assert read_train(train, "s", blind=True).targets[0] == ("t1", "b.png")
    evaluation = write_rows(tmp_path / "e.jsonl", [eval_row(0, [1], "0.png"), eval_row(0, [2], "1.png")])
    read = read_eval(evaluation, SUBSET, blind=True)
    assert read.items[int(read.queries[0])] == ("q0", "")
    assert read.queries[0] == read.queries[1]


keys = st.lists(st.tuples(st.text("ab", max_size=2), st.text("xy", max_size=1)), min_size=1, max_size=20)


@given(keys, keys)
def test_unique_references_keep_every_reference_once(first: list, second: list) -> None:
    unique, codes = unique_references(make_references(first), make_references(second))
    assert [tuple(unique[int(code)]) for code in codes] == first + second
    assert len(unique) == len(set(first + second))


@given(keys)
def test_unique_references_put_texts_before_images(pairs: list) -> None:
    unique, _ = unique_references(make_references(pairs))
    keys = [(bool(unique[index].image), len(unique[index].text)) for index in range(len(unique))]
    assert keys == sorted(keys)


def test_rows_survive_pickling(tmp_path: Path) -> None:
    rows = read_train(write_rows(tmp_path / "s.jsonl", [train_row(1), train_row(2)]), "s")
    copy = pickle.loads(pickle.dumps(rows.take(np.array([1]))))
    assert copy.queries[0].text == "q2"
    assert copy.where(0).endswith("line 2")


def test_identities_are_equal_for_equal_references_alone() -> None:
    references = [
        Reference("a", ""),
        Reference("", "a"),
        Reference("a", "b.png"),
        Reference("b", ""),
        Reference("ab", ".png"),
        Reference("a", b"x"),
    ]
    numbers = [identity(reference) for reference in references]
    assert len(set(numbers)) == len(references)
    assert all(0 <= number < 2**63 for number in numbers)
    digest = hashlib.blake2b("ä\0x.png".encode(), digest_size=8).digest()
    assert identity(Reference("ä", "x.png")) == int.from_bytes(digest, "big") % 2**63


def test_rows_remember_whether_their_targets_mask(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.jsonl", [train_row(1), train_row(2)])
    assert not read_train(path, "s").mask_same_target
    assert read_train(path, "s", mask_same_target=True).take(np.array([1])).mask_same_target
