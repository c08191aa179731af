"""What is validated on was not trained on; where that is impossible, it is reported."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_roots import collate, write_image, write_rows, zip_folder

from fanoise_lightning.data import PairDataModule
from fanoise_lightning.data.pairs import number_pairs
from fanoise_lightning.data.rows.records import read_train

Row = dict[str, Any]


def row(query: str, target: str, query_image: str = "", target_image: str = "") -> Row:
    return {"qry": query, "qry_image_path": query_image, "pos_text": target, "pos_image_path": target_image}


def captions(images: int, each: int = 5) -> list[Row]:
    """Captions that have to find their image."""
    return [
        row(f"caption {image}.{number}", "", target_image=f"{image}.png")
        for image in range(images)
        for number in range(each)
    ]


def labels(count: int, each: int) -> list[Row]:
    """Texts that have to find their label."""
    return [
        row(f"text {label}.{number}", f"label {label}") for label in range(count) for number in range(each)
    ]


def back(rows: list[Row]) -> list[Row]:
    names = {"qry": "pos_text", "qry_image_path": "pos_image_path"}
    names |= {new: old for old, new in names.items()}
    return [{names[name]: value for name, value in row.items()} for row in rows]


def set_up(path: Path, rows: list[Row], **options: Any) -> tuple[PairDataModule, str]:
    """The data module of these rows, and what it says of the split."""
    (path / "0.png").touch()  # so that there are images
    file = write_rows(path / "mine.jsonl", rows)
    data = PairDataModule(file, num_workers=0, batch_size=2, collate=collate, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup()
    return data, "\n".join(str(warning.message) for warning in caught)


def right_answers(data: PairDataModule) -> list[tuple[int, int]]:
    """The query and the target of each held-out pair."""
    (found,) = data.eval_sets
    rows = zip(found.queries.tolist(), found.candidates.tolist(), found.num_right.tolist(), strict=True)
    return [(query, target) for query, candidates, count in rows for target in candidates[:count]]


def texts_and_images(data: PairDataModule, name: str, held_out: bool) -> set[tuple[str, str]]:
    """The different queries or targets of one part."""
    if held_out:
        found = data.eval_sets[0]
        numbers = [pair[name == "targets"] for pair in right_answers(data)]
        return {(found.items[i].text, found.items[i].image) for i in numbers}
    return {tuple(each) for each in getattr(data.train_set.subsets[0], name)}


@pytest.mark.parametrize("count", [20, 102])
def test_five_captions_of_an_image_stay_together(tmp_path: Path, count: int) -> None:
    for rows in (captions(count), back(captions(count)), captions(count) + back(captions(count))):
        data, told = set_up(tmp_path, rows)
        assert texts_and_images(data, "targets", True).isdisjoint(texts_and_images(data, "targets", False))
        assert texts_and_images(data, "queries", True).isdisjoint(texts_and_images(data, "queries", False))
        assert told == ""
        wanted = round(0.1 * len(rows))
        assert wanted <= len(right_answers(data)) <= wanted + 10
        assert len(right_answers(data)) + len(data.train_set) == len(rows)


def test_images_that_queries_share_stay_together(tmp_path: Path) -> None:
    rows = [row(f"question {n}", f"answer {n}", query_image=f"{n // 5}.png") for n in range(200)]
    data, told = set_up(tmp_path, rows)
    images = [{image for _, image in texts_and_images(data, "queries", part)} for part in (True, False)]
    assert len(images[0]) >= 4
    assert images[0].isdisjoint(images[1])
    assert told == ""


def test_labels_are_split_by_query_and_that_is_reported(tmp_path: Path) -> None:
    for count, each in ((10, 40), (9, 10), (4, 100), (2, 30)):
        data, told = set_up(tmp_path, labels(count, each), val_fraction=0.2)
        assert texts_and_images(data, "queries", True).isdisjoint(texts_and_images(data, "queries", False))
        found = len(texts_and_images(data, "targets", True))
        assert (
            f"(split by query), of which 0 of {count * each // 5} queries, {found} of {found} targets" in told
        )
        assert ((data.eval_sets[0].candidates >= 0).sum(dim=1) == found).all()
        assert data.eval_sets[0].subset.floors["chance"] == pytest.approx(1 / found)


def test_few_queries_are_split_by_target(tmp_path: Path) -> None:
    data, told = set_up(tmp_path, back(labels(5, 40)))
    assert "split by target" in told
    assert texts_and_images(data, "targets", True).isdisjoint(texts_and_images(data, "targets", False))
    assert ((data.eval_sets[0].candidates >= 0).sum(dim=1) > 10).all()


def test_labels_in_both_directions_are_split_by_pair(tmp_path: Path) -> None:
    rows = labels(5, 40) + back(labels(5, 40))
    data, told = set_up(tmp_path, rows)
    assert "split by pair" in told
    found = data.eval_sets[0]
    held_out = {
        frozenset((found.items[query].text, found.items[target].text))
        for query, target in right_answers(data)
    }
    trained = data.train_set.subsets[0]
    assert len(held_out) == 20
    assert held_out.isdisjoint(
        {frozenset((query.text, target.text)) for query, target in zip(trained.queries, trained.targets)}
    )


def test_one_large_group_does_not_keep_the_others_from_being_split(tmp_path: Path) -> None:
    rows = [row(f"hub {n}", "hub") for n in range(100)] + [row(f"q{n}", f"t{n}") for n in range(100)]
    data, told = set_up(tmp_path, rows)
    assert len(data.eval_sets[0].queries) == 20
    assert ("hub", "") not in texts_and_images(data, "targets", True)
    assert told == ""


def test_a_query_without_a_wrong_candidate_is_left_out_and_named(tmp_path: Path) -> None:
    rows = [row(f"q{n}", f"t{n}") for n in range(4)]
    alone = [row("all", f"t{n}") for n in range(4)]
    write_rows(tmp_path / "val.jsonl", rows + alone)
    data, told = set_up(tmp_path, labels(3, 5), val=tmp_path / "val.jsonl")
    assert (
        "4 of 8 validation queries have no candidate but right answers and themselves (the first: 'all', "
        "subset `val`, " in told
    )
    assert "line 5); they are skipped" in told
    assert {text for text, _ in texts_and_images(data, "queries", True)} == {f"q{n}" for n in range(4)}
    assert data.eval_sets[0].subset.floors["chance"] == 0.25


def test_the_targets_of_queries_that_are_left_out_stay_candidates(tmp_path: Path) -> None:
    """The two directions have only each other, and the third query would be left with its target alone."""
    write_rows(tmp_path / "val.jsonl", [row("a", "b"), row("b", "a"), row("c", "b")])
    data, told = set_up(tmp_path, labels(3, 5), val=tmp_path / "val.jsonl")
    assert "2 of 3 validation queries have no candidate but right answers and themselves" in told
    (found,) = data.eval_sets
    (candidates,) = found.candidates.tolist()
    assert [found.items[item].text for item in (*found.queries.tolist(), *candidates)] == ["c", "b", "a"]


def test_a_validation_that_anything_passes_is_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "val.jsonl", [row("q1", "t"), row("q2", "t")])
    with pytest.raises(
        ValueError, match=r"2 of 2 validation queries have no candidate.*any model would be right"
    ):
        set_up(tmp_path, labels(3, 5), val=tmp_path / "val.jsonl")
    for rows in ([row(f"q{n}", "t") for n in range(40)], [row("q", f"t{n}") for n in range(40)]):
        with pytest.raises(ValueError, match=r"mine\.jsonl.*different targets: no split leaves.*`val`"):
            set_up(tmp_path, rows)


def test_pairs_of_your_own_to_validate_on(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "v.png", 9)
    rows = [row(f"new {n}", f"{n}", query_image="v.png") for n in range(6)] + [row("text 0.0", "label 0")]
    write_rows(tmp_path / "elsewhere" / "val.jsonl", rows)
    data, told = set_up(tmp_path, labels(4, 10), val=tmp_path / "elsewhere" / "val.jsonl")
    assert len(data.train_set) == 40
    assert len(data.eval_sets[0].queries) == 7
    assert (
        "elsewhere/val.jsonl`), of which 1 of 7 queries, 1 of 7 targets, 0 of 1 images are trained on" in told
    )
    (batch,) = data.val_dataloader()
    assert batch["skipped"] == []
    assert set(batch["inputs"]["grey"].tolist()) == {9, -1}


def test_the_overlap_is_counted(tmp_path: Path) -> None:
    """Of images and references, whatever their role in training, against plain sets."""
    random = np.random.default_rng(0)
    rows = [
        row(f"s{a}", f"s{b}", *(f"{n}.png" if n < 30 else "" for n in images))
        for a, b, *images in random.integers(0, 60, (300, 4)).tolist()
    ]
    for part, chosen in (("a", rows[:200]), ("b", rows[200:])):
        write_rows(tmp_path / f"{part}.jsonl", chosen)
    trained, held_out = number_pairs(*(read_train(tmp_path / f"{part}.jsonl", part) for part in "ab"))

    def plain(name: str, rows: list[Row]) -> set[Any]:
        columns = {"queries": ("qry", "qry_image_path"), "targets": ("pos_text", "pos_image_path")}
        if name in columns:
            return {tuple(row[column] for column in columns[name]) for row in rows}
        if name == "references":
            return plain("queries", rows) | plain("targets", rows)
        return {row[column] for row in rows for column in ("qry_image_path", "pos_image_path")} - {""}

    for name, counts in held_out.seen(trained).items():
        mine = plain(name, rows[200:])
        theirs = plain("images" if name == "images" else "references", rows[:200])
        assert counts == (len(mine & theirs), len(mine))


def test_a_chain_of_pairs_is_trained_on_in_the_other_role(tmp_path: Path) -> None:
    """Each target is the query of the next pair: one component, so that pairs are split by query."""
    data, told = set_up(tmp_path, [row(f"s{n}", f"s{n + 1}") for n in range(100)])
    trained = texts_and_images(data, "queries", False) | texts_and_images(data, "targets", False)
    for name in ("queries", "targets"):
        mine = texts_and_images(data, name, True)
        assert f"{len(mine & trained)} of {len(mine)} {name}" in told
    assert texts_and_images(data, "targets", True) & trained


def test_hard_negatives_that_are_held_out_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {**row(f"q{n}", f"t{n}"), "neg_text": [f"t{n - 1}", ""], "neg_image_path": ["", ""]}
        for n in range(60)
    ]
    with caplog.at_level("INFO"):
        data, told = set_up(tmp_path, rows)
    trained = {text for text, _ in texts_and_images(data, "queries", False)}
    hard = {f"t{int(text[1:]) - 1}" for text in trained}
    shared = len({text for text, _ in texts_and_images(data, "targets", True)} & hard)
    assert shared > 0
    assert f"; {shared} of 12 items are hard negatives of training pairs" in caplog.text
    assert told == ""  # known and no reason to warn: nobody learns an answer from them


SPELLINGS = ["{}.png", "./{}.png", ".//{}.png", "{}.png/.", ".\\{}.png"]


def test_spellings_of_an_image_are_one_image_to_the_split(tmp_path: Path) -> None:
    rows = [
        row("", f"caption {n} {at}", query_image=spelling.format(n))
        for n in range(40)
        for at, spelling in enumerate(SPELLINGS)
    ]
    data, told = set_up(tmp_path, rows)
    images = [texts_and_images(data, "queries", part) for part in (True, False)]
    assert len(images[0]) + len(images[1]) == 40
    assert images[0].isdisjoint(images[1])
    assert told == ""


def test_spellings_of_an_image_are_counted_as_trained_on(tmp_path: Path) -> None:
    write_rows(tmp_path / "val.jsonl", [row("", f"new {n}", f"é{n}.png") for n in range(4)])
    rows = [row("", f"caption {n}", f".\\e\u0301{n}.png") for n in range(3)]
    for n in range(4):
        write_image(tmp_path / f"é{n}.png")
    _, told = set_up(tmp_path, rows, val=tmp_path / "val.jsonl")
    assert "3 of 4 queries, 0 of 4 targets, 3 of 4 images are trained on too" in told


def test_texts_that_differ_in_white_space_or_unicode_form_are_one_text(tmp_path: Path) -> None:
    forms = ["caf\u00e9 {}", " cafe\u0301 {}", "caf\u00e9  {}", "cafe\u0301\n{} ", "caf\u00e9\u00a0{}"]
    rows = [row(form.format(n), f"answer {n} {at}") for n in range(40) for at, form in enumerate(forms)]
    data, told = set_up(tmp_path, rows)
    found = data.eval_sets[0]
    assert told == ""
    assert found.num_right.tolist() == [5] * 4  # each of these texts is one query with all five answers
    trained = {int(text.split()[-1]) for text, _ in texts_and_images(data, "queries", False)}
    assert len(trained) == 36
    assert trained.isdisjoint(int(text.split()[-1]) for text, _ in texts_and_images(data, "queries", True))
    first = {form.format(n) for form in forms for n in range(40)}
    assert {text for text, _ in texts_and_images(data, "queries", True)} <= first  # encoded as it is written
    ids = [number for batch in data.train_dataloader() for number in batch["query_id"].tolist()]
    assert len(set(ids)) == len(ids) / 5


def spell_files(root: Path, number: int) -> list[str]:
    """One picture under many names."""
    write_image(root / "images" / f"{number}.png", number)
    (root / f"link{number}.png").symlink_to(root / "images" / f"{number}.png")
    absolute = str((root / "images" / f"{number}.png").resolve())
    return [f"images/{number}.png", f"{number}.png", absolute, f"link{number}.png", f"images/{number}.PNG"]


def test_names_of_one_file_are_one_image(tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    rows = []
    for n in range(1, 41):
        names = [*spell_files(tmp_path, n), f"linked/{n}.png"]
        rows += [row("", f"caption {n} {at}", query_image=name) for at, name in enumerate(names)]
    data, told = set_up(tmp_path, rows)
    assert told == ""
    images = [{image for _, image in texts_and_images(data, "queries", part)} for part in (True, False)]
    assert images[0] | images[1] == {f"images/{n}.png" for n in range(1, 41)}  # the first name of each
    assert images[0].isdisjoint(images[1])
    assert data.eval_sets[0].num_right.tolist() == [6] * 4


def test_names_of_one_file_are_masked_in_training(tmp_path: Path) -> None:
    names = [name for n in range(1, 9) for name in spell_files(tmp_path, n)]
    rows = [row(f"query {at}", "", target_image=name) for at, name in enumerate(names)]
    data, _ = set_up(tmp_path, rows)
    ids = [number for batch in data.train_dataloader() for number in batch["target_id"].tolist()]
    assert len(set(ids)) <= 8 < 30 <= len(ids)


def test_a_file_in_an_archive_is_one_image(tmp_path: Path) -> None:
    for n in range(40):
        write_image(tmp_path / "images" / f"{n}.png", n)
    root = zip_folder(tmp_path / "images")
    rows = [
        row("", f"caption {n} {at}", f"{name}{n}.png")
        for n in range(40)
        for at, name in enumerate(("", "images/"))
    ]
    data, told = set_up(tmp_path, rows, image_root=root)
    assert told == ""
    assert len(texts_and_images(data, "queries", True)) == 4


def test_validation_pairs_with_another_root_have_other_images(tmp_path: Path) -> None:
    """And the same ones, if their paths lead there."""
    for folder in ("mine", "other"):
        for n in range(4):
            write_image(tmp_path / folder / f"{n}.png", n)
    write_rows(
        tmp_path / "mine" / "train.jsonl", [row(f"a {n}", "", target_image=f"{n}.png") for n in range(4)]
    )
    own = [row(f"b {n}", "", target_image=f"{n}.png") for n in range(3)]
    same = row("c", "", target_image=str(tmp_path / "mine" / "3.png"))
    write_rows(tmp_path / "other" / "val.jsonl", [*own, same])
    data = PairDataModule(
        tmp_path / "mine" / "train.jsonl",
        val=tmp_path / "other" / "val.jsonl",
        num_workers=0,
        batch_size=2,
        collate=collate,
    )
    with pytest.warns(UserWarning, match="0 of 4 queries, 1 of 4 targets, 1 of 4 images are trained on too"):
        data.setup()
