from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from fanoise_lightning.evaluation.intervals import mean_interval, median_interval, wilson_interval
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scores import MetricScore, ReferenceScores, SubsetScore
from fanoise_lightning.subset import Subset

Z = 1.959963984540054

# LLaVA-1.6 (1344 px) on the 36 subsets, percent, as published with VLM2Vec (arXiv 2410.05160): IND, then OOD.
PUBLISHED = {
    "classification": ([74.5, 80.3, 67.9, 91.5, 75.8], [44.0, 43.6, 79.8, 39.6, 14.7]),
    "vqa": ([69.0, 54.4, 52.0, 30.7, 34.8, 49.8], [42.1, 43.0, 61.2, 62.0]),
    "retrieval": ([80.9, 49.9, 75.4, 80.0, 75.7, 73.1, 65.5, 87.6], [16.2, 60.2, 56.5, 87.8]),
    "grounding": ([80.6], [88.7, 84.0, 90.9]),
}


def published() -> Scoreboard:
    return Scoreboard(
        [
            SubsetScore(f"{meta_task}-{distribution}-{i}", meta_task, distribution, score / 100, 1000)
            for meta_task, groups in PUBLISHED.items()
            for distribution, scores in zip(("IND", "OOD"), groups)
            for i, score in enumerate(scores)
        ]
    )


def small(**changes: object) -> Scoreboard:
    rows = [
        SubsetScore("a", "vqa", "IND", 0.2, 100, floors={"chance": 0.1, "blind": 0.15}),
        SubsetScore("b", "vqa", "IND", 0.4, 400, floors={"chance": 0.2}),
        SubsetScore("c", "retrieval", "IND", 0.9, 100, floors={"chance": 0.01, "blind": 0.02}),
    ]
    return Scoreboard([*rows, SubsetScore(**changes)] if changes else rows)  # type: ignore[arg-type]


def text(board: Scoreboard) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(board.table("title"))
    return console.export_text()


@pytest.mark.parametrize(
    ("wins", "queries", "lower", "upper"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", Stat. Med. 17, 1998, table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_agrees_with_newcombe(wins: int, queries: int, lower: float, upper: float) -> None:
    assert wilson_interval(wins / queries, queries) == pytest.approx((lower, upper), abs=5e-5)


@pytest.mark.parametrize("queries", [1, 7, 300])
@pytest.mark.parametrize("share", [0.0, 0.013, 0.5, 1.0])
def test_wilson_limits_are_one_z_from_the_estimate(share: float, queries: int) -> None:
    """The limits are the proportions p with |share - p| = z sqrt(p (1 - p) / n)."""
    quadratic = [1 + Z**2 / queries, -(2 * share + Z**2 / queries), share**2]
    assert wilson_interval(share, queries) == pytest.approx(sorted(np.roots(quadratic).real), abs=1e-9)


def test_the_interval_of_one_subset_is_its_own() -> None:
    assert mean_interval([0.3], [(0.2, 0.5)]) == pytest.approx((0.2, 0.5))


def test_the_interval_of_a_mean_agrees_with_a_parametric_bootstrap() -> None:
    shares, queries = np.array([0.3, 0.55, 0.8, 0.12]), np.array([300, 1000, 300, 500])
    draws = np.random.default_rng(0).binomial(queries, shares, size=(200_000, 4)) / queries
    interval = mean_interval(list(shares), [wilson_interval(p, n) for p, n in zip(shares, queries)])
    assert interval == pytest.approx(np.quantile(draws.mean(axis=1), [0.025, 0.975]), abs=1.5e-3)


def test_the_interval_of_a_mean_covers_the_truth_95_times_in_100() -> None:
    """Also near 0 and for few queries, where the usual standard error covers too seldom."""
    shares, queries = np.array([0.02, 0.05, 0.9]), np.array([50, 40, 60])
    wins = np.random.default_rng(1).binomial(queries, shares, size=(4000, 3))
    covered = 0
    for row in wins / queries:
        lower, upper = mean_interval(list(row), [wilson_interval(p, n) for p, n in zip(row, queries)])
        covered += lower <= shares.mean() <= upper
    assert 0.94 < covered / 4000 < 0.985


def test_published_subset_scores_give_the_published_means() -> None:
    board = published()
    means = {name: round(100 * mean.precision, 1) for name, mean in board.means.items()}
    assert means == {
        "classification": 61.2,
        "vqa": 49.9,
        "retrieval": 67.4,
        "grounding": pytest.approx(86.1, abs=0.051),  # 86.05
        "IND": 67.5,
        "OOD": 57.1,
        "overall": 62.9,
        "mean_of_meta_tasks": pytest.approx((61.2 + 49.9 + 67.4 + 86.1) / 4, abs=0.1),
    }


def test_the_sampling_error_of_36_subsets_is_that_of_the_literature() -> None:
    lower, upper = published().overall.interval  # type: ignore[union-attr]
    assert 100 * (upper - lower) / (2 * Z) == pytest.approx(0.24, abs=0.03)


def test_means_are_over_subsets_and_not_over_queries() -> None:
    board = small()
    assert board.meta_tasks["vqa"].precision == pytest.approx(0.3)
    assert board.meta_tasks["vqa"].num_subsets == 2
    assert board.overall is not None
    assert board.mean_of_meta_tasks is not None
    assert board.overall.precision == pytest.approx(0.5)
    assert board.mean_of_meta_tasks.precision == pytest.approx(0.6)
    assert board.mean_of_meta_tasks.num_subsets == 3


def test_floors_are_averaged_where_every_subset_has_them() -> None:
    means = small().means
    assert means["vqa"].floors == pytest.approx({"chance": 0.15})
    assert means["retrieval"].floors == {"chance": 0.01, "blind": 0.02}


def test_a_group_without_subsets_is_absent() -> None:
    assert list(small().means) == ["vqa", "retrieval", "IND", "overall", "mean_of_meta_tasks"]
    assert Scoreboard([]).means == {}
    assert Scoreboard([]).metrics("val") == {}


def test_a_subset_without_scored_queries_is_in_no_mean() -> None:
    board = small(
        name="d", meta_task="vqa", distribution="OOD", precision=math.nan, num_queries=0, num_skipped=9
    )
    assert board.means == small().means
    assert board.metrics("val") == small().metrics("val")
    assert board.to_dict()["subsets"]["d"]["precision"] is None


def test_metrics_have_a_key_for_each_mean_and_each_subset() -> None:
    assert small().metrics("val") == pytest.approx(
        {
            "val/precision_at_1/vqa": 0.3,
            "val/precision_at_1/retrieval": 0.9,
            "val/precision_at_1/IND": 0.5,
            "val/precision_at_1/overall": 0.5,
            "val/precision_at_1/mean_of_meta_tasks": 0.6,
            "val/precision_at_1/vqa/a": 0.2,
            "val/precision_at_1/vqa/b": 0.4,
            "val/precision_at_1/retrieval/c": 0.9,
        }
    )


def test_the_dictionary_survives_strict_json() -> None:
    values = small(name="d", meta_task="vqa", distribution="OOD", precision=math.nan, num_queries=0).to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert list(values) == ["metric", "confidence", "subsets", "means"]
    assert values["subsets"]["a"] == {
        "meta_task": "vqa",
        "distribution": "IND",
        "precision": 0.2,
        "interval": list(wilson_interval(0.2, 100)),
        "num_queries": 100,
        "num_ties": 0,
        "num_skipped": 0,
        "floors": {"chance": 0.1, "blind": 0.15},
    }
    assert list(values["means"]["IND"]) == ["precision", "interval", "num_subsets", "floors"]


def test_two_subsets_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['a'\] appear more than once"):
        small(name="a", meta_task="vqa", distribution="OOD", precision=0.5, num_queries=10)


def test_a_score_is_made_of_a_subset_and_the_outcomes_of_its_queries() -> None:
    subset = Subset("a", "vqa", "IND", {"chance": 0.1}, task="b")
    score = SubsetScore.of(subset, torch.tensor([1, 0, torch.nan, 0.5, 0, torch.nan]))
    assert score == SubsetScore("a", "vqa", "IND", 0.375, 4, 1, 2, {"chance": 0.1}, task="b")
    none = SubsetScore.of(subset, torch.tensor([torch.nan]))
    assert (none.num_queries, none.num_skipped) == (0, 1)


def test_the_table_shows_percentages_by_meta_task() -> None:
    lines = [line.split() for line in text(small()).splitlines() if line.strip()]
    assert lines[0] == ["title"]
    assert lines[1] == ["precision@1,", "%", "score", "95", "%", "chance", "blind", "n"]
    assert [line[0] for line in lines[3:]] == ["vqa", "a", "b", "retrieval", "c", "IND", "overall", "mean"]
    assert lines[5] == ["b", "IND", "40.0", "35.3–44.9", "20.0", "-", "400"]


def test_ties_and_skipped_queries_have_columns_only_where_there_are_any() -> None:
    board = small(name="d", meta_task="vqa", distribution="OOD", precision=0.5, num_queries=90, num_ties=7)
    assert text(board).splitlines()[2].split()[-2:] == ["n", "ties"]
    board = small(name="d", meta_task="vqa", distribution="OOD", precision=0.5, num_queries=90, num_skipped=7)
    assert text(board).splitlines()[2].split()[-2:] == ["n", "skipped"]


# task, distribution, precision, queries: `colour` and `shape` are shared, `smell` and `sound` are not.
MIXED = [
    ("colour", "IND", 0.5, 200),
    ("smell", "IND", 0.1, 100),
    (None, "IND", 0.3, 100),
    ("shape", "IND", 0.8, 100),
    ("sound", "OOD", 0.9, 100),
    ("shape", "OOD", 0.6, 300),
    (None, "OOD", 0.7, 100),
    ("colour", "OOD", 0.25, 100),
]


def mixed(**unscored: str) -> Scoreboard:
    """The subsets of MIXED, named by task and distribution; `unscored` are those without a scored query."""
    return Scoreboard(
        [
            SubsetScore(
                f"{task}-{distribution}",
                "vqa",
                distribution,
                math.nan if unscored.get(str(task)) == distribution else precision,
                0 if unscored.get(str(task)) == distribution else queries,
                floors={"chance": precision / 10},
                task=task,
            )
            for task, distribution, precision, queries in MIXED
        ]
    )


def test_shared_means_are_over_the_tasks_of_both_distributions() -> None:
    means = mixed().means
    names = ["vqa", "IND", "OOD", "IND_shared", "OOD_shared", "overall", "mean_of_meta_tasks"]
    assert list(means) == names
    for distribution in ("IND", "OOD"):
        rows = {task: (p, n) for task, d, p, n in MIXED if d == distribution}
        scores = [rows["colour"][0], rows["shape"][0]]
        found = means[f"{distribution}_shared"]
        assert found.precision == pytest.approx(sum(scores) / 2)
        limits = [wilson_interval(*rows["colour"]), wilson_interval(*rows["shape"])]
        assert found.interval == pytest.approx(mean_interval(scores, limits))
        assert found.num_subsets == 2
        assert found.floors == pytest.approx({"chance": sum(scores) / 20})


def test_a_task_is_shared_only_if_both_of_its_subsets_were_scored() -> None:
    means = mixed(shape="OOD").means
    assert (means["IND_shared"].precision, means["OOD_shared"].precision) == (0.5, 0.25)
    none = mixed(shape="IND", colour="OOD")
    assert none.shared == {}
    assert list(none.means) == ["vqa", "IND", "OOD", "overall", "mean_of_meta_tasks"]


def test_shared_means_are_logged_written_and_printed() -> None:
    board = mixed()
    assert board.metrics("val")["val/precision_at_1/OOD_shared"] == pytest.approx(0.425)
    values = json.loads(json.dumps(board.to_dict(), allow_nan=False))
    assert values["means"]["IND_shared"]["precision"] == pytest.approx(0.65)
    assert values["subsets"]["shape-OOD"]["task"] == "shape"
    assert "task" not in values["subsets"]["None-OOD"]
    lines = [line.split() for line in text(board).splitlines()]
    assert [line[:3] for line in lines if line[1:2] == ["shared"]] == [
        ["IND", "shared", "65.0"],
        ["OOD", "shared", "42.5"],
    ]


def test_a_reference_has_shared_means_too() -> None:
    scores = {f"{task}-{distribution}": p / 2 for task, distribution, p, _ in MIXED}
    beside = mixed().beside(ReferenceScores(scores, {}, {}))
    assert beside["means"]["IND_shared"] == pytest.approx(0.325)


REFERENCE = ReferenceScores(
    subsets={"a": 0.1, "b": 0.5, "c": 0.7, "z": 0.9},
    means={"vqa": 0.31, "retrieval": 0.8, "overall": 0.44},
    members={
        "vqa": ("a", "b"),
        "retrieval": ("c", "z"),
        "IND": ("a", "b", "c"),
        "overall": ("a", "b", "c", "z"),
    },
)


def test_a_known_mean_stands_beside_a_mean_over_the_same_subsets_only() -> None:
    """Else the reference's scores on the scoreboard's own subsets are averaged."""
    assert small().beside(REFERENCE) == {
        "subsets": {"a": 0.1, "b": 0.5, "c": 0.7},
        "means": {
            "vqa": 0.31,  # known
            "retrieval": 0.7,  # without z
            "IND": pytest.approx((0.1 + 0.5 + 0.7) / 3),  # not known
            "overall": pytest.approx((0.1 + 0.5 + 0.7) / 3),
            "mean_of_meta_tasks": pytest.approx((0.31 + 0.7) / 2),
        },
    }


def test_without_the_scores_of_all_its_subsets_a_mean_stays_empty() -> None:
    reference = ReferenceScores({"a": 0.1}, REFERENCE.means, REFERENCE.members)
    assert small().beside(reference) == {"subsets": {"a": 0.1}, "means": {"vqa": 0.31}}
    assert Scoreboard([]).beside(reference) == {"subsets": {}, "means": {}}
    more = small(name="d", meta_task="vqa", distribution="OOD", precision=0.5, num_queries=90)
    assert list(more.beside(REFERENCE)["means"]) == ["retrieval", "IND"]


def test_a_reference_is_averaged_over_the_subsets_that_were_scored() -> None:
    rows = [SubsetScore("a", "vqa", "IND", math.nan, 0), SubsetScore("b", "vqa", "IND", 0.4, 100)]
    assert Scoreboard(rows).beside(REFERENCE)["means"]["vqa"] == 0.5


def test_references_have_columns_of_their_own() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    others = {"ours": REFERENCE, "theirs": ReferenceScores({}, {"vqa": 0.25}, REFERENCE.members)}
    console.print(small().table("", others))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert lines[0] == ["precision@1,", "%", "score", "95", "%", "ours", "theirs", "chance", "blind", "n"]
    rows = {line[0]: line[-5:] for line in lines[2:]}
    assert rows["b"] == ["50.0", "-", "20.0", "-", "400"]
    assert rows["vqa"][-4:] == ["31.0", "25.0", "15.0", "-"]
    assert rows["overall"][-4:] == ["43.3", "-", "10.3", "-"]
    assert rows["mean"][-4:] == ["50.5", "-", "8.0", "-"]


def measured(name: str, value: float, rank: float) -> SubsetScore:
    metrics = {
        "recall_at_10": MetricScore(value, (value - 0.1, value + 0.1), 0.01),
        "median_rank": MetricScore(rank, (rank - 1, rank + 2), 250.5),
    }
    return SubsetScore(name, "retrieval", "IND", 0.2, 100, floors={"chance": 0.001}, metrics=metrics)


def test_further_metrics_are_averaged_logged_written_and_printed() -> None:
    board = Scoreboard([measured("a", 0.5, 3), measured("b", 0.7, 8)])
    assert board.means["overall"].metrics["recall_at_10"].value == pytest.approx(0.6)
    interval = mean_interval([0.5, 0.7], [(0.4, 0.6), (0.6, 0.8)])
    assert board.means["overall"].metrics["recall_at_10"].interval == pytest.approx(interval)
    logged = board.metrics("val")
    assert logged["val/recall_at_10/retrieval/b"] == 0.7
    assert logged["val/median_rank/overall"] == 5.5
    values = json.loads(json.dumps(board.to_dict(), allow_nan=False))
    assert values["subsets"]["a"]["metrics"]["median_rank"] == {
        "value": 3,
        "interval": [2, 5],
        "chance": 250.5,
    }
    lines = [line.split() for line in text(board).splitlines()]
    (row,) = [line for line in lines if line[:1] == ["b"]]
    assert row == ["b", "IND", "20.0", "13.3–28.9", "0.1", "70.0", "8.0", "100"]


def test_a_single_subset_is_one_line_of_each_metric_with_interval_and_chance() -> None:
    lines = [
        line.split() for line in text(Scoreboard([measured("mine", 0.5, 3)])).splitlines() if line.strip()
    ]
    assert lines[1] == ["mine,", "%", "score", "95", "%", "chance", "n"]
    assert lines[3:] == [
        ["precision@1", "IND", "20.0", "13.3–28.9", "0.1", "100"],
        ["recall@10", "50.0", "40.0–60.0", "1.0", "100"],
        ["median", "rank", "3.0", "2.0–5.0", "250.5", "100"],
    ]
    alone = Scoreboard([SubsetScore("mine", "retrieval", "IND", 0.2, 100, floors={"chance": 0.001})])
    rows = [line.split() for line in text(alone).splitlines() if line.strip()]
    assert rows[3:] == [["mine", "IND", "20.0", "13.3–28.9", "0.1", "100"]]


def test_the_interval_of_a_median_covers_it_95_times_in_100() -> None:
    draws = np.random.default_rng(2).exponential(size=(4000, 25))
    covered = 0
    for row in draws:
        lower, upper = median_interval(row.tolist())
        covered += lower <= math.log(2) <= upper
    assert 0.95 <= covered / 4000 < 0.975
    assert median_interval([3, 1, 2]) == (1, 3)
    assert median_interval([7]) == (7, 7)
