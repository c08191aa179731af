"""From the embeddings of an evaluation suite to its scoreboard."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor

from fanoise_lightning.evaluation.embedding_table import EmbeddingTable
from fanoise_lightning.evaluation.retrieval_metrics import retrieval_metrics
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scores import SubsetScore
from fanoise_lightning.evaluation.subset_ranks import subset_ranks
from fanoise_lightning.subset import Subset

__all__ = ["Suite", "SuiteScorer", "SuiteSubset"]


class SuiteSubset(Protocol):
    """One subset of a suite; see :class:`~fanoise_lightning.data.batches.evaluation.EvalDataset`.

    It may have `num_right`, `catalogue` and `excluded` too; see
    :func:`~fanoise_lightning.evaluation.subset_ranks.subset_ranks`.
    """

    subset: Subset
    queries: Tensor
    candidates: Tensor


class Suite(Protocol):
    """Several subsets whose items are numbered together, so that shared ones are embedded once.

    Its length is the number of items; see :class:`~fanoise_lightning.data.batches.evaluation.EvalSuite`.
    """

    @property
    def subsets(self) -> Sequence[SuiteSubset]:
        """The subsets."""

    @property
    def numbers(self) -> Sequence[Tensor]:
        """For each subset, ``(n,)``: the suite's number of each of its n items."""

    def __len__(self) -> int: ...


class SuiteScorer:
    """Collects the embeddings of a suite over one pass and all ranks, and scores its subsets.

    The scoreboard's speed counts from the construction of the scorer.

    Args:
        suite: the subsets, and how their items are numbered.
        device: where the embeddings are kept and compared.
        metrics: what to report beside precision@1, such as ``["recall_at_10", "mrr"]``; see
            :func:`~fanoise_lightning.evaluation.retrieval_metrics.retrieval_metrics`.

    Raises:
        ValueError: for an unknown metric.

    Example:
        >>> scorer = SuiteScorer.of(trainer.val_dataloaders, module.device)    # doctest: +SKIP
        >>> scorer.update(embeddings, index)                                   # doctest: +SKIP
        >>> scorer.compute().overall.precision                                 # doctest: +SKIP
        0.601
    """

    def __init__(self, suite: Suite, device: torch.device | str, metrics: Sequence[str] = ()) -> None:
        self.suite, self.metrics = suite, retrieval_metrics(metrics)
        self._table = EmbeddingTable(len(suite), owner="the evaluation suite").to(device)
        self._since = perf_counter()

    @classmethod
    def of(cls, loader: Any, device: torch.device | str, metrics: Sequence[str] = ()) -> SuiteScorer:
        """A scorer for the suite that a data loader reads.

        Args:
            loader: the evaluation loader, whose data set must be a :class:`Suite`.
            device: where the embeddings are kept and compared.
            metrics: what to report beside precision@1.

        Raises:
            TypeError: if there are several loaders, or the data set is not a suite.
        """
        suite: Any = getattr(loader, "dataset", None)
        if not hasattr(suite, "numbers"):
            got = type(loader if suite is None else suite).__name__
            raise TypeError(
                f"ContrastiveModule evaluates one loader over all subsets (an EvalSuite), got {got}; use "
                "MMEBDataModule or PairDataModule for the evaluation loader"
            )
        return cls(suite, device, metrics)

    def update(self, embeddings: Tensor, index: Tensor) -> None:
        """Add a batch of items.

        Args:
            embeddings: (n, D) L2-normalised embeddings, any floating dtype.
            index: (n,) the suite's numbers of these items.

        Raises:
            ValueError: if the shapes do not fit.
        """
        self._table.update(embeddings, index)

    def compute(self) -> Scoreboard:
        """Score every subset. With several ranks, all of them must call it.

        Raises:
            ValueError: if an item is not in the suite, or a score is not finite.
        """
        embeddings = self._table.compute()
        num_sides = int((embeddings.position >= 0).sum())  # before the clock is read: it waits for the device
        speed = num_sides / (perf_counter() - self._since)
        scores = []
        for part, numbers in zip(self.suite.subsets, self.suite.numbers, strict=True):
            own = embeddings.select(numbers)
            ranks = subset_ranks(
                own,
                part.queries,
                part.candidates,
                part.subset.name,
                num_right=getattr(part, "num_right", None),
                catalogue=getattr(part, "catalogue", None),
                excluded=getattr(part, "excluded", None),
            )
            scores.append(SubsetScore.of_ranks(part.subset, ranks, self.metrics))
        return Scoreboard(scores, sides_per_second=speed)
