"""Precision@1 of a subset: does the ground truth win among its query's own candidates?

The items (unique texts and images) of one or of many subsets are numbered, and queries and candidates name
them by number: what comes in many rows, or in many subsets, is embedded once.
"""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn

__all__ = ["EmbeddingTable", "Embeddings", "PrecisionAtOne", "SubsetResult", "precision_at_one", "share_won"]

# Two float32 roundings of one unit vector give cosines about 1e-7 apart. Without a tolerance rounding
# picks the winners of a collapsed encoder.
TIE = 1e-6

# Queries are scored in blocks of about this many candidates, so that memory is bounded by (candidates, D).
_CANDIDATES_PER_BLOCK = 2**14


class SubsetResult(TypedDict):
    """The score of one subset; ``precision`` is a fraction, NaN where no query was scored."""

    precision: float
    num_queries: int
    num_ties: int
    num_skipped: int


def precision_at_one(scores: Tensor, mask: Tensor | None = None, name: str = "", atol: float = 0.0) -> Tensor:
    """Whether the ground truth, column 0, has the best score of each query.

    A tie for the best score counts 1 / (number tied), the expected outcome of drawing one of the tied. Taking
    ``argmax`` instead would score a collapsed encoder, which gives all candidates one embedding, 100 %.

    Args:
        scores: (Q, C), higher is better; column 0 is the ground truth.
        mask: (Q, C) bool, False where there is no candidate; ``None`` where all are candidates.
        name: the subset, for error messages.
        atol: scores this close to the best are tied with it.

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
            f"subset {name!r}: `scores` must be (queries, candidates), with `mask` alike, got "
            f"{tuple(scores.shape)} and {tuple(mask.shape)}"
        )
    if not mask[:, 0].all():
        row = int((~mask[:, 0]).nonzero()[0])
        raise ValueError(f"subset {name!r}: the ground truth (column 0) of row {row} of `scores` is masked")
    broken = mask & ~scores.isfinite()
    if broken.any():
        raise ValueError(
            f"subset {name!r}: {int(broken.sum())} of {int(mask.sum())} scores are not finite (first in row "
            f"{int(broken.any(dim=1).nonzero()[0])}): the encoder returned NaN or infinity. Look at the "
            "learning rate, the precision, and the inputs of that row"
        )
    return share_won(
        scores.masked_fill(~mask, -torch.inf), torch.zeros_like(mask[:, 0], dtype=torch.long), atol
    )


def share_won(scores: Tensor, own: Tensor, atol: float) -> Tensor:
    """The rule of :func:`precision_at_one`, with the ground truth in any column.

    Args:
        scores: (Q, C), minus infinity where there is no candidate.
        own: (Q,), the column of the ground truth.
        atol: scores this close to the best are tied with it.

    Returns:
        (Q,) float32; NaN where a score is.
    """
    best = scores >= scores.amax(dim=1, keepdim=True) - atol
    return best.gather(1, own[:, None])[:, 0] / best.sum(dim=1)


class Embeddings:
    """The embeddings of numbered items, as :class:`EmbeddingTable` gathered them.

    Args:
        rows: (n, D) L2-normalised embeddings, float32, in any order.
        position: (N,) the row of each item, -1 if it never arrived.
    """

    # Not a tuple or dataclass: torchmetrics would clone the tensors in it.
    def __init__(self, rows: Tensor, position: Tensor) -> None:
        self.rows, self.position = rows, position

    def select(self, items: Tensor) -> Embeddings:
        """These items alone, numbered anew: 0 for the first of them.

        Args:
            items: (n,) their numbers here.
        """
        return Embeddings(self.rows, self.position[items.to(self.position.device)])

    def score(self, queries: Tensor, candidates: Tensor, name: str = "") -> SubsetResult:
        """Precision@1 of a subset.

        A query is skipped where its own item or its ground truth never arrived; distractors that never
        arrived are left out. A candidate that is listed twice counts once.

        Args:
            queries: (Q,) the item of each query.
            candidates: (Q, C) the items of each query's candidates, ground truth in column 0, padded with -1.
            name: the subset, for messages.

        Raises:
            ValueError: if there is no query, a query or a ground truth is missing (negative), the shapes are
                wrong, or a score is not finite.
        """
        _check_subset(queries, candidates, name)
        queries = queries.to(self.rows.device)
        candidates = _without_repeats(candidates.to(self.rows.device))
        self._warn_of_missing(queries, candidates, name)
        query_row = self.position[queries]  # (Q,)
        candidate_row = torch.where(candidates < 0, -1, self.position[candidates])  # (Q, C)
        kept = (query_row >= 0) & (candidate_row[:, 0] >= 0)
        num_queries = int(kept.sum())
        result = SubsetResult(
            precision=float("nan"), num_queries=num_queries, num_ties=0, num_skipped=len(kept) - num_queries
        )
        if num_queries:
            scores = _score_candidates(self.rows, query_row[kept], candidate_row[kept])
            outcome = precision_at_one(scores, candidate_row[kept] >= 0, name, atol=TIE)
            result["precision"] = float(outcome.double().mean())
            result["num_ties"] = int(((outcome > 0) & (outcome < 1)).sum())
        return result

    def _warn_of_missing(self, queries: Tensor, candidates: Tensor, name: str) -> None:
        items = torch.cat([queries, candidates[candidates >= 0]]).unique()
        missing = int((self.position[items] < 0).sum())
        if missing:
            rank_zero_warn(
                f"subset {name!r}: {missing} of {len(items)} texts and images have no embedding "
                "(broken images, or a limited number of batches): fewer distractors make its score too high"
            )


class EmbeddingTable(Metric):
    """Collects the embeddings of numbered items over a pass and over all ranks.

    Items may arrive shuffled, repeated (a distributed sampler pads) and sharded over ranks.

    Args:
        num_items: how many there are, N.
        owner: whose they are, for messages.
        kwargs: passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: in ``compute``, if an item is not one of 0 to N - 1.

    Example:
        >>> table = EmbeddingTable(num_items=3)
        >>> table.update(torch.tensor([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]]), index=torch.tensor([1, 2, 0]))
        >>> table.compute().score(queries=torch.tensor([0]), candidates=torch.tensor([[1, 2]]))
        {'precision': 1.0, 'num_queries': 1, 'num_ties': 0, 'num_skipped': 0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    index: list[Tensor]
    embeddings: list[Tensor]

    def __init__(self, num_items: int, owner: str = "the table", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_items, self.owner = num_items, owner
        self.add_state("index", [], dist_reduce_fx="cat")
        self.add_state("embeddings", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, index: Tensor) -> None:
        """Add a batch of items.

        Args:
            embeddings: (n, D) L2-normalised embeddings, any floating dtype.
            index: (n,) the numbers of these items.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if embeddings.ndim != 2 or index.shape != embeddings.shape[:1]:
            raise ValueError(
                f"{self.owner}: `embeddings` must be (n, D) and `index` (n,), got "
                f"{tuple(embeddings.shape)} and {tuple(index.shape)}"
            )
        self.index.append(index.to(embeddings.device))
        self.embeddings.append(embeddings.detach().float().flatten())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        # A rank where no item arrived does not know D, and torchmetrics would send 1-D floats for it, unlike
        # the other ranks. Hence flat embeddings, and no empty lists.
        if not self.index:
            self.index.append(torch.empty(0, dtype=torch.long, device=self.device))
            self.embeddings.append(torch.empty(0, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> Embeddings:
        """The embeddings of all ranks."""
        # stored in one piece from now on: beside the batches they would take the memory twice
        self.index, self.embeddings = [dim_zero_cat(self.index)], [dim_zero_cat(self.embeddings)]
        (index,), (embeddings,) = self.index, self.embeddings
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.num_items:
            raise ValueError(
                f"{self.owner} has the items 0 to {self.num_items - 1}, got embeddings of the items "
                f"{int(index.min())} to {int(index.max())}: do they belong to this data set?"
            )
        position = torch.full((self.num_items,), -1, device=index.device)
        position[index] = torch.arange(len(index), device=index.device)
        return Embeddings(embeddings.view(len(index), -1) if len(index) else embeddings[None], position)


class PrecisionAtOne(EmbeddingTable):
    """Precision@1 of one subset, from embeddings that arrive in any order, each text or image once.

    The items may be sharded over ranks; see :class:`EmbeddingTable`, and :meth:`Embeddings.score` for what
    is done about those that never arrive.

    Args:
        queries: (Q,) the item of each query.
        candidates: (Q, C) the items of each query's candidates, ground truth in column 0, padded with -1.
        name: the subset, for messages.
        kwargs: passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: if there is no query, a query or a ground truth is missing (negative), or the shapes are
            wrong; in ``compute``, if a score is not finite.

    Example:
        >>> metric = PrecisionAtOne(queries=torch.tensor([0]), candidates=torch.tensor([[1, 2, -1]]))
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), index=torch.tensor([0, 1, 2]))
        >>> metric.compute()
        {'precision': 1.0, 'num_queries': 1, 'num_ties': 0, 'num_skipped': 0}
    """

    def __init__(self, queries: Tensor, candidates: Tensor, name: str = "", **kwargs: Any) -> None:
        _check_subset(queries, candidates, name)
        num_items = 1 + int(max(queries.max(), candidates.max()))
        super().__init__(num_items, owner=f"subset {name!r}", **kwargs)
        self.name, self.queries, self.candidates = name, queries, candidates

    def compute(self) -> SubsetResult:  # type: ignore[override]
        """The share of queries won, with how many queries were scored, tied for the best, and skipped."""
        return super().compute().score(self.queries, self.candidates, self.name)


def _check_subset(queries: Tensor, candidates: Tensor, name: str) -> None:
    if queries.ndim != 1 or candidates.ndim != 2 or len(queries) != len(candidates):
        raise ValueError(
            f"subset {name!r}: `queries` must be (Q,) and `candidates` (Q, C), got "
            f"{tuple(queries.shape)} and {tuple(candidates.shape)}"
        )
    if candidates.numel() == 0:
        raise ValueError(f"subset {name!r} has no queries or no candidates: leave it out")
    if queries.min() < 0 or candidates[:, 0].min() < 0:
        row = int(((queries < 0) | (candidates[:, 0] < 0)).nonzero()[0])
        raise ValueError(f"subset {name!r}: row {row} has no query or no ground truth (-1): leave it out")


def _without_repeats(candidates: Tensor) -> Tensor:
    """Repeats within a row become padding; the first, and so the ground truth, stays."""
    ordered, order = candidates.sort(dim=1, stable=True)
    repeated = torch.zeros_like(candidates, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return candidates.masked_fill(torch.zeros_like(repeated).scatter(1, order, repeated), -1)


def _score_candidates(embeddings: Tensor, queries: Tensor, candidates: Tensor) -> Tensor:
    """Cosines (Q, C), as matrix products of blocks of queries with their unique candidates.

    In float64 (where there is one), because a user's TF32 or bf16 switches change float32 products.
    """
    dtype = torch.float32 if embeddings.device.type == "mps" else torch.float64
    scores = embeddings.new_zeros(candidates.shape)
    size = max(1, _CANDIDATES_PER_BLOCK // candidates.shape[1])
    for block in torch.arange(len(queries), device=queries.device).split(size):
        unique, inverse = candidates[block].clamp_min(0).unique(return_inverse=True)
        products = embeddings[queries[block]].to(dtype) @ embeddings[unique].to(dtype).T  # (b, unique)
        scores[block] = products.gather(1, inverse).float()
    return scores
