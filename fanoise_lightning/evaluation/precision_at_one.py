"""Precision@1: does the ground truth of a query win among the query's own candidates?"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fanoise_lightning.evaluation.embedding_table import Embeddings, EmbeddingTable
from fanoise_lightning.evaluation.ranks import rank
from fanoise_lightning.evaluation.subset_ranks import check_subset, subset_ranks
from fanoise_lightning.evaluation.ties import TIE

__all__ = [
    "PrecisionAtOne",
    "SubsetResult",
    "precision_at_one",
    "query_outcomes",
    "score_subset",
    "subset_result",
]


class SubsetResult(NamedTuple):
    """The result of one subset.

    Args:
        precision: precision@1, a fraction; NaN if no query was scored.
        num_queries: how many queries were scored.
        num_ties: how many of them have a ground truth that tied with others for the best score.
        num_skipped: how many queries could not be scored.
    """

    precision: float
    num_queries: int
    num_ties: int
    num_skipped: int


def precision_at_one(scores: Tensor, mask: Tensor | None = None, name: str = "", atol: float = TIE) -> Tensor:
    """Whether the ground truth, column 0, has the best score of each query.

    A tie for the best score counts 1 / (number tied), the expected outcome of drawing one of the tied at
    random. With ``argmax`` a collapsed encoder, which gives all candidates one embedding, would score 100 %.

    Args:
        scores: (Q, C), higher is better; column 0 is the ground truth.
        mask: (Q, C) bool, False where there is no candidate; ``None`` if all are candidates.
        name: the subset, for messages.
        atol: scores this close to the best tie with it; the default suits cosines.

    Returns:
        (Q,) float32: 1 where the ground truth won, 0 where it lost, 1 / (number tied) where it tied.

    Raises:
        ValueError: if a score is not finite, a ground truth is masked, or the shapes do not fit.

    Example:
        >>> precision_at_one(torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.7, 0.1], [0.5, 0.5, 0.2]]))
        tensor([1.0000, 0.0000, 0.5000])
    """
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    if scores.ndim != 2 or scores.shape[1] == 0 or mask.shape != scores.shape:
        raise ValueError(
            f"subset {name!r}: `scores` and `mask` must both be (queries, candidates), got "
            f"{tuple(scores.shape)} and {tuple(mask.shape)}"
        )
    if not mask[:, 0].all():
        row = int((~mask[:, 0]).nonzero()[0])
        raise ValueError(f"subset {name!r}: the ground truth (column 0) of row {row} of `scores` is masked")
    ranks = rank(scores, torch.ones_like(mask[:, :1]), mask, name, atol)
    return ranks.precision_at_one().to(scores.device, torch.float32)


def query_outcomes(
    embeddings: Embeddings, queries: Tensor, candidates: Tensor, name: str = "", warn: bool = True
) -> Tensor:
    """Whether each query of a subset finds its ground truth.

    A query is skipped if its own item or its ground truth never arrived; other candidates that never arrived
    are ignored. A candidate that is listed twice counts once.

    Args:
        embeddings: those of the subset's items.
        queries: (Q,) the item of each query.
        candidates: (Q, C) the items of each query's candidates: ground truth in column 0, padded with -1.
        name: the subset, for messages.
        warn: whether to warn of items that never arrived.

    Returns:
        (Q,) float32 on the CPU: 1 where the ground truth won, 0 where it lost, 1 / (number tied) where it
        tied, NaN where the query was skipped.

    Raises:
        ValueError: if there is no query, a query or a ground truth is missing (negative), the shapes do not
            fit, or a score is not finite.
    """
    return subset_ranks(embeddings, queries, candidates, name, warn).precision_at_one().float()


def score_subset(
    embeddings: Embeddings, queries: Tensor, candidates: Tensor, name: str = "", warn: bool = True
) -> SubsetResult:
    """Precision@1 of a subset; arguments and errors are those of :func:`query_outcomes`.

    Example:
        >>> table = EmbeddingTable(num_items=3)
        >>> table.update(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), index=torch.tensor([0, 1, 2]))
        >>> score_subset(table.compute(), queries=torch.tensor([0]), candidates=torch.tensor([[1, 2]]))
        SubsetResult(precision=1.0, num_queries=1, num_ties=0, num_skipped=0)
    """
    return subset_result(query_outcomes(embeddings, queries, candidates, name, warn))


def subset_result(outcomes: Tensor) -> SubsetResult:
    """The result of a subset from the outcomes of its queries, (Q,); see :func:`query_outcomes`."""
    scored = outcomes[~outcomes.isnan()].double()
    ties = (scored > 0) & (scored < 1)
    precision = float(scored.mean()) if len(scored) else float("nan")
    return SubsetResult(precision, len(scored), int(ties.sum()), len(outcomes) - len(scored))


class PrecisionAtOne(EmbeddingTable):
    """Precision@1 of one subset, from embeddings that arrive in any order, each text or image once.

    ``compute`` returns a 0-d tensor: a fraction, or NaN if no query could be scored. The counts are then in
    ``result``. Items may be sharded over ranks. A query is skipped if its own item or its ground truth never
    arrives; other candidates that never arrive are ignored, with a warning.

    In Lightning, call ``update`` in the step and ``self.log(name, metric)``: the score is computed once, at
    the end of the epoch. ``forward`` returns the score of its batch alone: of the queries whose own item and
    ground truth are both in it.

    Args:
        queries: (Q,) the item of each query.
        candidates: (Q, C) the items of each query's candidates: ground truth in column 0, padded with -1.
        name: the subset, for messages.
        kwargs: passed on to :class:`torchmetrics.Metric`.

    Attributes:
        result: ``precision``, ``num_queries``, ``num_ties`` and ``num_skipped`` of the last ``compute`` or
            ``forward``; ``None`` before. A ``reset`` keeps it: it can be read after ``self.log``,
            which computes and resets at the end of the epoch.

    Raises:
        ValueError: if there is no query, a query or a ground truth is missing (negative), or the shapes do
            not fit; in ``compute``, if a score is not finite.

    Example:
        >>> metric = PrecisionAtOne(queries=torch.tensor([0]), candidates=torch.tensor([[1, 2, -1]]))
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), index=torch.tensor([0, 1, 2]))
        >>> metric.compute()
        tensor(1.)
        >>> metric.result.num_ties
        0
    """

    higher_is_better = True

    def __init__(self, queries: Tensor, candidates: Tensor, name: str = "", **kwargs: Any) -> None:
        check_subset(queries, candidates, name)
        num_items = 1 + int(max(queries.max(), candidates.max()))
        super().__init__(num_items, owner=f"subset {name!r}", **kwargs)
        self.name, self.queries, self.candidates = name, queries, candidates
        self.result: SubsetResult | None = None
        self._is_batch = False

    def forward(self, embeddings: Tensor, index: Tensor) -> Tensor:
        """Add a batch of items, as ``update``, and return the score of this batch alone."""
        self._is_batch = True  # most items are missing from a batch: no reason to warn
        try:
            return super().forward(embeddings, index)
        finally:
            self._is_batch = False

    def compute(self) -> Tensor:  # type: ignore[override]
        """The share of queries won: 0-d, float32."""
        embeddings = super().compute()
        self.result = score_subset(
            embeddings, self.queries, self.candidates, self.name, warn=not self._is_batch
        )
        return torch.tensor(self.result.precision, dtype=torch.float32, device=self.device)
