"""Published scores inside and outside of sampling error."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fanoise_lightning.evaluation.mmeb import CATALOG
from fanoise_lightning.evaluation.mmeb_published import BASELINES, all_published, published
from fanoise_lightning.evaluation.receipt import Comparison, Receipt, outside_by_chance, receipts
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scores import ReferenceScores, SubsetScore

QWEN = "VLM2Vec, Qwen2-VL-7B"


def board(scores: dict[str, float]) -> Scoreboard:
    entries = [(CATALOG[name].subset, score) for name, score in scores.items()]
    return Scoreboard([SubsetScore(s.name, s.meta_task, s.distribution, p, 1000) for s, p in entries])


def against(scores: dict[str, float], model: str) -> Receipt:
    (found,) = receipts(board(scores), {model: all_published()[model]})
    return found


def test_published_scores_are_inside_themselves() -> None:
    receipt = against(dict(published("Qwen2-VL-7B")["VLM2Vec"].subsets), QWEN)
    assert receipt.num_inside == len(receipt.subsets) == 36
    assert receipt.means["overall"].difference == pytest.approx(-0.0031, abs=1e-4)  # of another evaluation
    assert receipt.means["overall"].inside


@pytest.mark.parametrize("points", [-4.0, -2.0, 2.0, 4.0])
def test_inside_is_the_score_test_of_the_published_value(points: float) -> None:
    """Wilson's interval holds the values that scipy's score test does not reject, up to rounding."""
    name, value = "CIRR", published("Qwen2-VL-7B")["VLM2Vec"].subsets["CIRR"]
    score = value + points / 100
    comparison = against({name: score}, QWEN).subsets[name]
    z = abs(score - value) / np.sqrt(value * (1 - value) / 1000)
    assert comparison.inside == bool(2 * stats.norm.sf(z) >= 0.05)
    assert comparison.difference == pytest.approx(points / 100)


def test_a_published_score_is_rounded() -> None:
    reference = ReferenceScores({"CIRR": 0.5}, {}, {"overall": list(CATALOG)})
    edge = 1000 * 0.5 + 31.0  # the interval of 531 of 1000 begins at 0.50000 and a bit
    lower = board({"CIRR": edge / 1000}).subsets[0].interval[0]
    assert 0.5 < lower < 0.5005
    (found,) = receipts(board({"CIRR": edge / 1000}), {"m": reference})
    assert found.subsets["CIRR"].inside


def test_one_model_drawn_again_is_outside_as_often_as_said() -> None:
    draw = np.random.default_rng(0)
    truth = {name: round(float(draw.uniform(0.3, 0.9)), 4) for name in CATALOG}
    reference = {"m": ReferenceScores(truth, {}, {"overall": list(CATALOG)})}
    counts, means = [], []
    for _ in range(200):
        again = {name: draw.binomial(1000, p) / 1000 for name, p in truth.items()}
        (receipt,) = receipts(board(again), reference)
        counts.append(36 - receipt.num_inside)
        means.append(receipt.means["overall"].inside)
    assert np.mean(counts) / 36 == pytest.approx(0.05, abs=0.012)
    assert np.mean(np.array(counts) <= outside_by_chance(36)) >= 0.93
    assert np.mean(means) >= 0.91


@pytest.mark.parametrize(("disagree", "outside"), [(0.1, 0.002), (0.25, 0.05), (0.5, 0.166)])
def test_what_two_models_of_equal_accuracy_cost_by_how_often_they_disagree(
    disagree: float, outside: float
) -> None:
    """As the page says: 5 % are outside if they disagree on p (1 - p) of the queries."""
    draw = np.random.default_rng(1)
    half = disagree / 2
    drawn = draw.multinomial(1000, [half, half, 0.5 - half, 0.5 - half], 3000)  # one, other, both, none right
    theirs, ours = ((drawn[:, i] + drawn[:, 2]) / 1000 for i in (0, 1))
    inside = [Comparison.of(board({"CIRR": a}).subsets[0], b).inside for a, b in zip(ours, theirs)]
    assert 1 - np.mean(inside) == pytest.approx(outside, abs=0.015)


@pytest.mark.parametrize("count", [0, 1, 3, 36, 78])
def test_how_many_may_be_outside_by_chance(count: int) -> None:
    assert outside_by_chance(count) == (stats.binom.ppf(0.95, count, 0.05) if count else 0)


def test_only_what_is_over_the_same_subsets_is_compared() -> None:
    found = {r.model: r for r in receipts(board({"CIRR": 0.5}), all_published())}
    assert set(found) == {f"VLM2Vec, {name}" for name in ("LLaVA-1.6-HR", "Qwen2-VL-2B", "Qwen2-VL-7B")}
    everything = dict.fromkeys(CATALOG, 0.45)
    whole = {r.model: r for r in receipts(board(everything), all_published())}
    assert set(whole) >= {"FANoise, Qwen2-VL-2B", *BASELINES}
    near = [name for name, r in whole.items() if r.means["overall"].inside]
    assert near == ["UniIR", "CLIP, fine-tuned"]  # 44.7 and 45.4 of 45.0 +- 0.5


def test_the_line_says_what_is_outside() -> None:
    scores = dict(published("Qwen2-VL-7B")["VLM2Vec"].subsets)
    scores["GQA"] -= 0.1
    line = against(scores, QWEN).line()
    assert line.startswith(
        f"sampling error of {QWEN}: 35 of 36 subsets inside (4 may be outside by chance), "
    )
    assert "GQA -10.0" in line
    assert "CIRR" not in line
    low = against(dict.fromkeys(scores, 0.02), QWEN).line()
    assert "; outside: DocVQA -87.7, " in low  # the farthest first: 89.7 was published
    assert low.count("-") < 25
    assert low.endswith(" more")
