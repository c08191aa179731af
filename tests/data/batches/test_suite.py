"""All evaluation subsets as one data set, in which each text and image comes once."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from data_roots import collate, eval_row, make_root, write_rows

from fanoise_lightning.data import MMEBDataModule
from fanoise_lightning.data.batches.evaluation import EvalSuite, ItemCollate


@pytest.fixture
def suite(tmp_path: Path) -> EvalSuite:
    """The items of `reading`, one of which is long, and of `looking`; they share all but five queries."""
    root = make_root(tmp_path / "root")
    rows = [eval_row(row, [row, (row + 1) % 6, 100_000], "4.png" if row == 4 else "") for row in range(6)]
    write_rows(root / "eval" / "reading.jsonl", rows)
    data = MMEBDataModule(root, num_workers=0, collate=collate)
    data.setup("validate")
    assert data.eval_suite is not None
    return data.eval_suite


def keys(suite: EvalSuite) -> list[tuple[str, str]]:
    """(text, image) of each item of the suite, as the subsets have them."""
    known = {}
    for subset, numbers in zip(suite.subsets, suite.numbers, strict=True):
        for number, place in enumerate(numbers.tolist()):
            assert known.setdefault(place, subset.items[number]) == subset.items[number]
    return [tuple(known[place]) for place in range(len(suite))]


def test_what_subsets_share_comes_once(suite: EvalSuite) -> None:
    reading, looking = ({tuple(item) for item in subset.items} for subset in suite.subsets)
    assert len(reading & looking) == 7
    assert len(suite) == len(reading | looking) == 6 + 6 + 5 + 1
    assert sorted(keys(suite)) == sorted(reading | looking)


def test_a_text_with_another_image_is_another_item(suite: EvalSuite) -> None:
    assert {("q3", ""), ("q3", "3.png")} <= set(keys(suite))


def test_an_item_is_read_as_its_subset_reads_it(suite: EvalSuite) -> None:
    for subset, numbers in zip(suite.subsets, suite.numbers, strict=True):
        for number, place in enumerate(numbers.tolist()):
            index, sample = suite[place]
            assert index == place
            assert (
                ItemCollate(collate)([(0, sample)])["inputs"]
                == ItemCollate(collate)([subset[number]])["inputs"]
            )


def test_the_heaviest_items_come_first(suite: EvalSuite) -> None:
    weights = [(bool(image), len(text)) for text, image in keys(suite)]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == (True, 2)
    assert weights[6] == (False, 7)


def test_a_broken_image_is_reported_with_its_subset(suite: EvalSuite) -> None:
    looking, numbers = suite.subsets[1], suite.numbers[1]
    query = int(looking.queries[3])
    (looking.store.root.path / "3.png").unlink()  # type: ignore[union-attr]
    index, line = suite[int(numbers[query])]
    assert (index, line) == (int(numbers[query]), looking[query][1])
    assert str(line).startswith("subset `looking`, item ")


def test_a_broken_image_of_several_subsets_is_reported_once_with_the_first(suite: EvalSuite) -> None:
    reading, looking = suite.subsets
    (looking.store.root.path / "4.png").unlink()  # type: ignore[union-attr]
    lines = [line for line in (suite[place][1] for place in range(len(suite))) if isinstance(line, str)]
    assert lines == [reading[int(reading.queries[4])][1]]
    assert lines != [looking[int(looking.queries[4])][1]]


def test_it_survives_pickling(suite: EvalSuite) -> None:
    copy = pickle.loads(pickle.dumps(suite))
    assert keys(copy) == keys(suite)
    assert copy[0][1].text == suite[0][1].text
