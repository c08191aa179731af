from __future__ import annotations

import pytest
import torch
from evaluation.subsets import expected, subset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fanoise_lightning.evaluation.scorer import SuiteScorer
from fanoise_lightning.subset import Subset


class Part:
    """One subset of 60 items."""

    def __init__(self, name: str, seed: int) -> None:
        self.subset = Subset(name, "vqa", "IND", {"chance": 0.1})
        self.queries, self.candidates, self.embeddings = subset(seed=seed)


class TwoParts(Dataset[int]):
    """Two subsets with items of their own, numbered backwards in the suite."""

    def __init__(self) -> None:
        self.subsets = [Part("a", 0), Part("b", 1)]
        self.numbers = list(torch.arange(119, -1, -1).split(60))

    def __len__(self) -> int:
        return 120

    def embeddings(self) -> Tensor:
        return torch.cat([part.embeddings for part in self.subsets]).flip(0)


def test_each_subset_has_its_own_precision_and_facts() -> None:
    suite = TwoParts()
    scorer = SuiteScorer.of(DataLoader(suite), "cpu")
    for index in torch.arange(120).split(50):
        scorer.update(suite.embeddings()[index], index)
    board = scorer.compute()
    assert [score.name for score in board.subsets] == ["a", "b"]
    for score, part in zip(board.subsets, suite.subsets):
        assert score.precision == pytest.approx(expected(part.queries, part.candidates, part.embeddings))
        assert (score.meta_task, score.floors, score.num_queries) == ("vqa", {"chance": 0.1}, 40)


@pytest.mark.parametrize("loader", [DataLoader([1, 2]), [DataLoader([1]), DataLoader([2])]])  # type: ignore[arg-type]
def test_what_is_no_suite_is_refused(loader: object) -> None:
    with pytest.raises(TypeError, match=r"one loader over all subsets \(an EvalSuite\), got list; use"):
        SuiteScorer.of(loader, "cpu")


def test_an_item_of_another_suite_is_named() -> None:
    scorer = SuiteScorer(TwoParts(), "cpu")
    scorer.update(torch.eye(2), torch.tensor([3, 120]))
    with pytest.raises(ValueError, match="the evaluation suite has the items 0 to 119"):
        scorer.compute()
