from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_roots import Recorder, collate, train_row, write_image, write_rows, zip_folder
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from fanoise_lightning.data import PairDataModule
from fanoise_lightning.data.pairs import draw_candidates
from fanoise_lightning.data.rows.answers import merge_answers
from fanoise_lightning.data.rows.splits import hold_out

# some texts are queries and targets
answers = st.lists(st.tuples(st.integers(0, 8), st.integers(4, 14)), min_size=1, max_size=30, unique=True)


def set_up(path: Path, **options: Any) -> PairDataModule:
    data = PairDataModule(path, **{"batch_size": 4, "num_workers": 0, "collate": collate, **options})
    data.setup("fit")
    return data


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for grey in range(4):
        write_image(tmp_path / "images" / f"{grey}.png", grey)
    rows = [train_row(number, f"images/{number % 4}.png") for number in range(40)]
    return write_rows(tmp_path / "mine.jsonl", rows)


def trained(data: PairDataModule) -> set[int]:
    return {number for batch in data.train_dataloader() for number in batch["query"]["number"].tolist()}


def test_a_part_is_held_out_and_has_to_be_found(pairs: Path) -> None:
    data = set_up(pairs)
    (validation,) = data.eval_sets
    subset = validation.subset
    assert (subset.name, subset.meta_task, subset.distribution) == ("validation", "retrieval", "IND")
    texts = [validation.items[index].text for index in range(len(validation))]
    queries = [texts[index] for index in validation.queries]
    assert len(queries) == 4
    assert [texts[row[0]] for row in validation.candidates] == [text.replace("q", "t") for text in queries]
    everything = {text.replace("q", "t") for text in queries}
    assert all({texts[index] for index in row} == everything for row in validation.candidates)
    assert trained(data) == set(range(40)) - {int(text[1:]) for text in queries}


def test_the_log_says_that_a_default_share_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = "no more than about 2, unless `val_fraction` says so"
    rows = write_rows(tmp_path / "texts.jsonl", [train_row(number) for number in range(40)])
    monkeypatch.setattr("fanoise_lightning.data.pairs.HELD_OUT", 2)
    with caplog.at_level("INFO"):
        set_up(rows, val_fraction=0.1)
        assert told not in caplog.text
        (validation,) = set_up(rows).eval_sets
    assert len(validation.queries) == 2
    assert told in caplog.text


def test_the_split_has_a_seed_of_its_own(pairs: Path) -> None:
    assert trained(set_up(pairs)) == trained(set_up(pairs))
    assert trained(set_up(pairs)) == trained(set_up(pairs, seed=1))
    assert trained(set_up(pairs)) != trained(set_up(pairs, split_seed=1))


def test_the_number_of_candidates_is_bounded(pairs: Path) -> None:
    (validation,) = set_up(pairs, val_fraction=0.5, num_candidates=7).eval_sets
    assert validation.candidates.shape == (20, 7)
    assert all(len(set(row)) == 7 for row in validation.candidates.tolist())


def test_all_right_answers_of_a_query_come_first(tmp_path: Path) -> None:
    rows = [{**train_row(n), "qry": f"query {n % 10}"} for n in range(30)]
    (found,) = set_up(write_rows(tmp_path / "p.jsonl", rows), val_fraction=0.5, num_candidates=5).eval_sets
    texts = [found.items[index].text for index in range(len(found))]
    assert len(found.queries) == 5
    assert found.num_right.tolist() == [3] * 5
    held_out = {text for text in texts if text.startswith("t")}
    for query, candidates in zip(found.queries.tolist(), found.candidates.tolist()):
        own = {f"t{n}" for n in range(30) if texts[query] == f"query {n % 10}"}
        assert {texts[item] for item in candidates[:3]} == own
        wrong = [texts[item] for item in candidates[3:] if item >= 0]
        assert len(set(wrong)) == len(wrong) == 4
        assert set(wrong) <= held_out - own
    assert found.subset.floors["chance"] == pytest.approx(3 / 7)


def test_the_whole_catalogue_is_all_held_out_targets(tmp_path: Path) -> None:
    one_way = [train_row(number) for number in range(30)]
    back = [{**row, "qry": row["pos_text"], "pos_text": row["qry"]} for row in one_way]
    path = write_rows(tmp_path / "b.jsonl", [*one_way, *back])
    (found,) = set_up(path, val_fraction=0.3, num_candidates=None).eval_sets
    assert found.candidates.shape == (18, 1)
    assert sorted(found.catalogue.tolist()) == sorted(found.candidates[:, 0].tolist())
    assert found.subset.floors["chance"] == pytest.approx(1 / 17)  # a query is not in its own catalogue


@given(answers, st.integers(1, 4))
def test_merged_answers_are_those_of_each_query(pairs: list, width: int) -> None:
    queries = np.array([query for query, _ in pairs])
    candidates = np.array([[target, *range(100, 100 + width - 1)] for _, target in pairs])
    expected: dict[int, list[int]] = {}
    for query, target in pairs:
        expected.setdefault(query, []).append(target)
    found = merge_answers(queries, candidates)
    assert found[0].tolist() == list(expected)
    for row, count, right in zip(found[1].tolist(), found[2].tolist(), expected.values()):
        assert row[:count] == right
        assert [item for item in row[count:] if item >= 0] == list(range(100, 100 + width - 1))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_come_from_the_image_root(pairs: Path, kind: str) -> None:
    rows = [train_row(number, f"{number % 4}.png") for number in range(40)]
    path = write_rows(pairs.with_name("mine.parquet"), rows)
    folder = pairs.with_name("images")
    data = set_up(path, image_root=folder if kind == "folder" else zip_folder(folder))
    for batch in data.train_dataloader():
        assert batch["query"]["grey"].tolist() == [number % 4 for number in batch["query"]["number"].tolist()]
        assert batch["skipped"] == []


def test_lightning_trains_on_it(pairs: Path, recorder: Recorder, trainer: Callable[..., Trainer]) -> None:
    data = PairDataModule(pairs, batch_size=6, num_workers=0)
    trainer(max_epochs=1).fit(recorder, datamodule=data)
    assert [len(batch) for batch in recorder.trained] == [6] * 6
    assert (
        sum(len(batch) for _, batch in recorder.evaluated) == len(data.eval_suite) == len(data.eval_sets[0])
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, "`val_fraction`.*0.0"),
        ({"val_fraction": 1.0}, "`val_fraction`.*1.0"),
        ({"num_candidates": 1}, "`num_candidates`.*1"),
        ({"val_fraction": 0.001}, r"mine\.jsonl.*leaves nothing to validate on"),
        ({"val_fraction": 0.999}, r"mine\.jsonl.*leaves nothing to train on"),
    ],
)
def test_bad_arguments_are_named(pairs: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_up(pairs, **options)


def test_missing_files_are_named(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        set_up(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match=r"none\.zip"):
        set_up(pairs, image_root=tmp_path / "none.zip")


groups = st.lists(st.integers(0, 8), min_size=2, max_size=40).map(
    lambda x: np.unique(x, return_inverse=True)[1]
)


@given(groups, st.floats(0.05, 0.95), st.integers(0, 5))
def test_a_group_is_never_on_both_sides_of_a_split(groups: np.ndarray, fraction: float, seed: int) -> None:
    held_out = hold_out(groups, fraction, seed)
    assert not set(groups[held_out]) & set(groups[~held_out])
    wanted = round(fraction * len(groups))
    assert wanted <= held_out.sum() <= wanted + np.bincount(groups).max() - 1 or wanted == held_out.sum() == 0


@given(answers, st.integers(2, 15), st.integers(0, 5))
def test_candidates_are_the_target_and_wrong_answers(pairs: list, count: int, seed: int) -> None:
    queries, targets = (np.array(column) for column in zip(*pairs))
    drawn = draw_candidates(queries, targets, count, seed)
    for query, target, row in zip(queries, targets, drawn.tolist()):
        others = [item for item in row[1:] if item >= 0]
        right = {other for key, other in pairs if key == query}
        wrong = set(targets.tolist()) - right - {query}
        assert row[0] == target
        assert set(others) <= wrong
        assert len(set(others)) == len(others) == min(count - 1, len(wrong))


def test_chance_is_a_floor_of_the_subset(pairs: Path) -> None:
    (validation,) = set_up(pairs, val_fraction=0.5, num_candidates=8).eval_sets
    assert validation.subset.floors == {"chance": pytest.approx(1 / 8)}


def test_both_directions_of_a_pair_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    one_way = [train_row(number) for number in range(30)]
    back = [{**row, "qry": row["pos_text"], "pos_text": row["qry"]} for row in one_way]
    source = write_rows(tmp_path / "both.jsonl", [*one_way, *back])
    data = set_up(source, val_fraction=0.3, batch_size=6)  # 42 pairs: none is left out, whatever the seed
    (validation,) = data.eval_sets
    held_out = {int(validation.items[index].text[1:]) for index in range(len(validation))}
    assert len(held_out) == 9
    assert trained(data) == set(range(30)) - held_out


def test_no_query_is_a_candidate_of_itself(tmp_path: Path) -> None:
    one_way = [train_row(number) for number in range(30)]
    back = [{**row, "qry": row["pos_text"], "pos_text": row["qry"]} for row in one_way]
    (found,) = set_up(write_rows(tmp_path / "b.jsonl", [*one_way, *back]), val_fraction=0.3).eval_sets
    assert not (found.candidates == found.queries[:, None]).any()
    assert ((found.candidates >= 0).sum(dim=1) == 17).all()  # of 9 pairs, all texts but the query
    assert found.subset.floors["chance"] == pytest.approx(1 / 17)


def test_the_same_target_is_masked_unless_told_otherwise(pairs: Path) -> None:
    def ids(**options: str) -> set[int]:
        return {
            n for batch in set_up(pairs, **options).train_dataloader() for n in batch["target_id"].tolist()
        }

    assert min(ids()) >= 0
    assert ids(mask_same_target="none") == {-1}
    with pytest.raises(ValueError, match="`mask_same_target` must be one of 'all', 'none', got 'no'"):
        set_up(pairs, mask_same_target="no")
