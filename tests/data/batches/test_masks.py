"""Which mask each training subset has, and that it is reported."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from data_roots import collate, make_root

from fanoise_lightning.data import MMEBDataModule

LOGGER = "lightning.pytorch.utilities.rank_zero"


def set_up(root: Path | str, **options: Any) -> MMEBDataModule:
    data = MMEBDataModule(root, **{"batch_size": 6, "num_workers": 0, "collate": collate, **options})
    data.setup("fit")
    return data


def add_entry(root: Path, **entry: str) -> None:
    table = root / "subsets.json"
    table.write_text(json.dumps([*json.loads(table.read_text()), entry]))


def masks(data: MMEBDataModule) -> dict[str, bool]:
    return {rows.name: rows.mask_same_target for rows in data.train_set.subsets}


def test_a_training_subset_of_another_name_is_masked_by_its_entry(tmp_path: Path, recwarn: Any) -> None:
    root = make_root(tmp_path / "root")
    add_entry(root, name="a", meta_task="classification")
    add_entry(root, name="b", meta_task="retrieval")
    data = set_up(root)
    assert masks(data) == {"a": True, "b": False}
    assert [rows.subset.name for rows in data.eval_sets] == ["reading", "looking"]
    assert not any("subsets.json" in str(warning.message) for warning in recwarn)


def test_a_training_subset_about_which_nothing_is_known_is_named(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    add_entry(root, name="b", meta_task="vqa")
    with pytest.warns(
        UserWarning, match=r"subsets\.json does not say what the training subsets a are.*\"a\""
    ):
        assert masks(set_up(root)) == {"a": False, "b": False}


@pytest.mark.parametrize("mask", ["all", "none"])
def test_it_makes_no_difference_if_all_are_treated_alike(tmp_path: Path, mask: str, recwarn: Any) -> None:
    assert set(masks(set_up(make_root(tmp_path / "root"), mask_same_target=mask)).values()) == {mask == "all"}
    assert not recwarn.list


@pytest.mark.parametrize(
    ("mask", "line"),
    [
        (
            "classification",
            "mask_same_target=classification masks pairs and hard negatives in group; "
            "hard negatives alone in caption, kind",
        ),
        ("all", "mask_same_target=all masks pairs and hard negatives in group, caption, kind"),
        ("none", "mask_same_target=none masks nothing in group, caption, kind"),
    ],
)
def test_one_line_says_which_mask_is_in_force(mask: str, line: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        names = ["group", "caption", "kind"]
        set_up("emoji", train_subsets=names, eval_subsets=["group"], mask_same_target=mask).setup("fit")
    assert [record.getMessage() for record in caplog.records] == [line]


def test_an_entry_with_neither_a_distribution_nor_a_training_file_is_an_error(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    add_entry(root, name="c", meta_task="classification")
    with pytest.raises(ValueError, match="subset `c` has no distribution, so it is only trained on"):
        set_up(root)


def test_an_evaluation_file_needs_an_entry_with_a_distribution(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    (root / "eval" / "looking.jsonl").rename(root / "eval" / "a.jsonl")
    table = json.loads((root / "subsets.json").read_text())
    (root / "subsets.json").write_text(json.dumps([table[0], {"name": "a", "meta_task": "vqa"}]))
    with pytest.raises(ValueError, match=r"a\.jsonl` has no entry with a distribution in "):
        set_up(root)


def test_the_batches_of_a_mask_for_none_tell_nothing() -> None:
    options = {"train_subsets": ["recolour", "group"], "num_samples": 20, "eval_subsets": ["group"]}

    def told(mask: str) -> dict[str, bool]:
        names = ("query_id", "target_id", "negative_id")
        batch = next(iter(set_up("emoji", **options, mask_same_target=mask).train_dataloader()))
        return {name: bool((batch[name] >= 0).all()) for name in names if (batch[name] >= 0).any()}

    assert told("none") == {}
    assert told("classification") == dict.fromkeys(("query_id", "target_id", "negative_id"), True)


def test_blind_queries_are_not_taken_for_the_same() -> None:
    options = {"train_subsets": ["kind"], "num_samples": 20, "eval_subsets": ["group"], "blind": True}
    batch = next(iter(set_up("emoji", **options).train_dataloader()))
    assert set(batch["query_id"].tolist()) == {-1}
    assert min(batch["target_id"].tolist()) >= 0
