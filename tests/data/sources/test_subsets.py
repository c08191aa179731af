from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fanoise_lightning._checks import check_names
from fanoise_lightning.data.sources.subsets_json import read_meta_tasks, read_subsets
from fanoise_lightning.subset import Subset

GOOD = {"name": "cars", "meta_task": "vqa", "distribution": "OOD", "floors": {"chance": 0.05}}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_reads_entries_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "subsets.json", [GOOD, {**GOOD, "name": "boats", "floors": None}])
    subsets = read_subsets(path)
    assert list(subsets) == ["cars", "boats"]
    assert subsets["cars"] == Subset("cars", "vqa", "OOD", {"chance": 0.05})
    assert subsets["boats"].floors == {}


def test_a_task_is_read_and_may_be_that_of_one_subset_in_each_distribution(tmp_path: Path) -> None:
    other = {**GOOD, "name": "toys", "distribution": "IND", "task": "wheels"}
    path = write(tmp_path / "subsets.json", [{**GOOD, "task": "wheels"}, other, {**GOOD, "name": "boats"}])
    assert [subset.task for subset in read_subsets(path).values()] == ["wheels", "wheels", None]


def test_an_entry_without_a_distribution_is_of_a_training_subset_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "subsets.json", [GOOD, {"name": "boats", "meta_task": "classification"}])
    assert list(read_subsets(path)) == ["cars"]
    assert read_meta_tasks(path) == {"cars": "vqa", "boats": "classification"}
    assert read_meta_tasks(path, trained=True) == {"boats": "classification"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ({}, "list of subsets"),
        ([1], "entry 0.*object"),
        ([{"name": "cars"}], "entry 0.*`meta_task` is missing"),
        ([GOOD, {**GOOD, "name": "b", "meta_task": "chess"}], "entry 1.*`b`.*`meta_task`.*'chess'"),
        ([{**GOOD, "distribution": "ood"}], "`distribution`.*'ood'"),
        ([{**GOOD, "name": "../cars"}], "`name`"),
        ([{**GOOD, "floors": {"chance": 5}}], "floor `chance`.*5"),
        ([GOOD, GOOD], "`cars` is listed twice"),
        ([GOOD, {"name": "cars", "meta_task": "vqa"}], "entry 1.*`cars` is listed twice"),
        ([{"name": "a/b", "meta_task": "vqa"}], "`name`"),
        ([{"name": "boats", "meta_task": "chess"}], "`boats`.*`meta_task`.*'chess'"),
        ([{"name": "boats", "meta_task": "vqa", "floors": {}}], "`distribution` is missing"),
        ([{"name": "boats", "meta_task": "vqa", "task": "b"}], "`distribution` is missing"),
        ([{**GOOD, "task": 3}], "entry 0.*`cars`.*`task` must be a name or null, got 3"),
        ([{**GOOD, "task": ""}], "`task` must be a name"),
        (
            [{**GOOD, "task": "b"}, {**GOOD, "name": "b"}, {**GOOD, "name": "c", "task": "b"}],
            "entry 2: `cars` has the task `b` and the distribution OOD too",
        ),
    ],
)
def test_bad_tables_name_file_and_entry(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "subsets.json", content)
    with pytest.raises(ValueError, match=message) as error:
        read_subsets(path)
    assert str(path) in str(error.value)


def test_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"subsets\.json"):
        read_subsets(tmp_path / "subsets.json")


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown training subset `MSCOCO_i2`; did you mean `MSCOCO_i2t`"):
        check_names(["MSCOCO_i2"], ["NIGHTS", "MSCOCO_i2t"], "training subset")


def test_repeated_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="`a` is given twice"):
        check_names(["a", "a"], ["a"], "training subset")
