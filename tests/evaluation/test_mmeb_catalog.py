from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from evaluation.mmeb_tables import published_table, subset_table

from fanoise_lightning.evaluation.mmeb import CATALOG, TRAIN_NAMES, by_train_name
from fanoise_lightning.evaluation.mmeb_published import (
    BACKBONES,
    BASELINES,
    published,
)
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scores import SubsetScore

DOCS = Path(__file__).parents[2] / "docs" / "mmeb.md"


def board(backbone: str) -> Scoreboard:
    """The scoreboard of a run with VLM2Vec's published scores."""
    scores = published(backbone)["VLM2Vec"].subsets
    return Scoreboard(
        [
            SubsetScore(name, entry.meta_task, entry.distribution, scores[name], 1000)
            for name, entry in CATALOG.items()
        ]
    )


def test_mmeb_has_36_subsets_in_4_meta_tasks() -> None:
    assert Counter(entry.meta_task for entry in CATALOG.values()) == {
        "classification": 10,
        "vqa": 10,
        "retrieval": 12,
        "grounding": 4,
    }
    assert Counter(entry.distribution for entry in CATALOG.values()) == {"IND": 20, "OOD": 16}
    assert all(name == entry.name for name, entry in CATALOG.items())


def test_in_distribution_is_what_is_trained_on() -> None:
    assert len(TRAIN_NAMES) == len(set(TRAIN_NAMES)) == 20
    for entry in CATALOG.values():
        trained = (entry.train_name is not None, entry.num_train > 0, bool(entry.instruction))
        assert trained == (entry.distribution == "IND",) * 3, entry.name
    renamed = {entry.name: entry.train_name for entry in CATALOG.values() if entry.train_name != entry.name}
    assert {name: train for name, train in renamed.items() if train} == {"ImageNet-1K": "ImageNet_1K"}


def test_the_training_set_is_as_large_as_published() -> None:
    """662 thousand pairs with 50 thousand at most of a subset; the sum of the capped, rounded sizes."""
    assert sum(min(entry.num_train, 50_000) for entry in CATALOG.values()) == pytest.approx(662_000, rel=0.01)


def test_an_instruction_holds_the_placeholder_where_the_query_has_an_image() -> None:
    for entry in CATALOG.values():
        if entry.instruction and entry.name != "WebQA":  # its queries have no image, and a placeholder
            assert entry.instruction.startswith("<|image_1|> ") == ("I" in entry.query), entry.name


def test_an_instruction_ends_with_a_space_where_a_text_follows() -> None:
    for entry in CATALOG.values():
        if entry.instruction:
            assert entry.instruction.endswith(" ") == ("T" in entry.query), entry.name


def test_an_entry_is_a_subset_with_chance_as_its_floor() -> None:
    subset = CATALOG["HatefulMemes"].subset
    assert (subset.name, subset.meta_task, subset.distribution) == ("HatefulMemes", "classification", "IND")
    assert subset.floors == {"chance": 0.5}
    assert sum(entry.num_candidates == 1000 for entry in CATALOG.values()) == 10 + 12 + 4 + 2


def test_entries_are_found_by_their_training_name() -> None:
    assert by_train_name("ImageNet_1K") is CATALOG["ImageNet-1K"]
    assert [by_train_name(name).train_name for name in TRAIN_NAMES] == TRAIN_NAMES
    with pytest.raises(
        ValueError, match="unknown MMEB training subset `ImageNet-1K`; did you mean `ImageNet_1K`"
    ):
        by_train_name("ImageNet-1K")


def test_published_scores_per_subset_give_the_published_means() -> None:
    means = published("LLaVA-1.6-HR")["VLM2Vec"].means
    assert len(means) == 7
    for name, mean in means.items():
        assert board("LLaVA-1.6-HR").means[name].precision == pytest.approx(mean, abs=0.00051), name


@pytest.mark.parametrize(("backbone", "overall"), [("Qwen2-VL-2B", 0.597), ("Qwen2-VL-7B", 0.655)])
def test_those_of_qwen2_vl_are_of_another_run_than_its_means(backbone: str, overall: float) -> None:
    """A wrong digit in one subset moves its meta-task by 0.1 or more; these are all within 1.0."""
    assert board(backbone).means["overall"].precision == pytest.approx(overall, abs=0.0005)
    for name, mean in published(backbone)["VLM2Vec"].means.items():
        assert board(backbone).means[name].precision == pytest.approx(mean, abs=0.01), name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_published_means_fit_together(backbone: str) -> None:
    """Overall is the mean of the meta-tasks, and of IND and OOD, by their numbers of subsets."""
    means = published(backbone)["VLM2Vec"].means
    sizes = {"classification": 10, "vqa": 10, "retrieval": 12, "grounding": 4}
    overall = sum(means[name] * size for name, size in sizes.items()) / 36
    assert overall == pytest.approx(means["overall"], abs=0.0011)
    if "IND" in means:
        assert (20 * means["IND"] + 16 * means["OOD"]) / 36 == pytest.approx(means["overall"], abs=0.0011)


def test_the_mean_of_the_meta_tasks_is_another_number() -> None:
    means = published("Phi-3.5-V")["VLM2Vec"].means
    of_meta_tasks = sum(means[name] for name in ("classification", "vqa", "retrieval", "grounding")) / 4
    assert (means["overall"], round(of_meta_tasks, 3)) == (0.601, 0.629)


def test_fanoise_gains_two_points_on_the_average_backbone() -> None:
    gains = [
        scores["FANoise"].means["overall"] - scores["VLM2Vec"].means["overall"]
        for scores in map(published, BACKBONES)
    ]
    assert sum(gains) / len(gains) == pytest.approx(0.0204, abs=0.0001)
    assert min(gains) > 0


def test_all_scores_are_fractions() -> None:
    references = [reference for backbone in BACKBONES for reference in published(backbone).values()]
    scores = [score for r in references for score in (*r.subsets.values(), *r.means.values())]
    assert len(scores) == 3 * 36 + 5 * 7 - 2 + 5
    assert all(0.1 < score < 1 for score in (*scores, *BASELINES.values()))


def test_an_unknown_backbone_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown backbone `Qwen2-VL-2b`; did you mean `Qwen2-VL-2B`"):
        published("Qwen2-VL-2b")


def test_the_page_on_mmeb_holds_the_tables_of_the_catalog() -> None:
    page = DOCS.read_text(encoding="utf-8")
    tables = [part for part in page.split("\n\n") if part.startswith(("| subset", "| backbone"))]
    assert tables == [subset_table(), published_table()]
    for name, score in BASELINES.items():
        assert f"{name.removesuffix(', fine-tuned')} {100 * score:.1f}" in page, name
