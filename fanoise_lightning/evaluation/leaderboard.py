"""A scoreboard as the JSON that MMEB's leaderboard takes.

The leaderboard [0] reads one file a model. Its metrics are those of VLM2Vec's evaluation code, for queries
with one right answer each: with these, recall@k is hit@k, precision@k is hit@k / k, MAP is MRR, and both
forms of NDCG are one. Ties count what they are worth on average over all orders of the tied, as on the
scoreboard; that code lets the order of the candidates decide.

References:
    [0] https://huggingface.co/spaces/TIGER-Lab/MMEB-Leaderboard
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from fanoise_lightning.evaluation.mmeb import CATALOG
from fanoise_lightning.evaluation.ranks import Ranks
from fanoise_lightning.evaluation.scoreboard import Scoreboard

__all__ = ["leaderboard", "leaderboard_gaps", "ranking_metrics"]

_CUTOFFS = (1, 5, 10)


def leaderboard(board: Scoreboard, **known: Any) -> dict[str, Any]:
    """The file of a model.

    Args:
        board: its scores, of queries with one right answer each.
        known: what is known of the model, by the leaderboard's names, such as ``model_name``.

    Returns:
        ``{"metadata": {...}, "metrics": {"image": {subset: {"hit@1": ..., "num_pred": ...}}}}``. What is not
        known is null. Subsets without a scored query are left out.

    Raises:
        ValueError: if a query has several right answers, or the scoreboard was built without ranks.
    """
    metadata = {
        "model_name": None,
        "model_backbone": None,
        "model_size": None,
        "embedding_dimension": None,
        "max_length_tokens": None,
        "model_release_date": None,
        "data_source": "Self-Reported",
        "url": None,
        **known,
        "report_generated_date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    metrics: dict[str, dict[str, float]] = {}
    for subset in board.subsets:
        if not subset.num_queries:
            continue
        if subset.ranks is None or subset.ranks.is_right.sum(dim=1).max() > 1:
            cause = "was scored without ranks" if subset.ranks is None else "has queries with several"
            raise ValueError(
                f"subset {subset.name!r} {cause}: the leaderboard's metrics are of one right answer a query"
            )
        counts = {"num_pred": subset.num_queries, "num_data": subset.num_queries + subset.num_skipped}
        metrics[subset.name] = {**ranking_metrics(subset.ranks), **counts}
    return {"metadata": metadata, "metrics": {"image": metrics}}


def leaderboard_gaps(board: Scoreboard) -> str:
    """What keeps the leaderboard from taking this scoreboard: ``""`` if it has exactly MMEB's subsets."""
    scored = [subset.name for subset in board.subsets if subset.num_queries]
    missing = [name for name in CATALOG if name not in scored]
    foreign = [name for name in scored if name not in CATALOG]
    skipped = [subset.name for subset in board.subsets if subset.num_queries and subset.num_skipped]
    parts = {"lacks": missing, "has, beside MMEB's,": foreign, "skipped queries of": skipped}
    return "; ".join(f"it {what} {', '.join(names)}" for what, names in parts.items() if names)


def ranking_metrics(ranks: Ranks) -> dict[str, float]:
    """The leaderboard's metrics at 1, 5 and 10, of the scored queries, each with one right answer.

    Example:
        >>> ranks = Ranks(*map(torch.tensor, ([[True]], [[1]], [[1]], [1], [50])))  # second of fifty
        >>> metrics = ranking_metrics(ranks)
        >>> metrics["hit@1"], metrics["hit@5"], metrics["precision@5"], metrics["mrr@10"]
        (0.0, 1.0, 0.2, 0.5)
    """
    place = torch.arange(1, max(_CUTOFFS) + 1).double()
    hit = _mean_gains(ranks, torch.ones_like(place))
    ndcg = _mean_gains(ranks, 1 / (place + 1).log2())
    mrr = _mean_gains(ranks, 1 / place)
    metrics = {
        "hit": hit,
        "ndcg_linear": ndcg,
        "ndcg_exponential": ndcg,
        "precision": {k: value / k for k, value in hit.items()},
        "recall": hit,
        "f1": {k: 2 * value / (k + 1) for k, value in hit.items()},
        "map": mrr,
        "mrr": mrr,
    }
    return {f"{name}@{k}": value for name, values in metrics.items() for k, value in values.items()}


def _mean_gains(ranks: Ranks, gains: Tensor) -> dict[int, float]:
    """By cutoff, the mean of what the right answers gain at their places, (10,), up to the cutoff."""
    better, tied = (part[ranks.is_scored] for part in ranks.first)
    total = torch.cat([gains.new_zeros(1), gains.cumsum(0)])  # of the first n places
    means = {}
    for k in _CUTOFFS:
        start, end = better.clamp_max(k), (better + tied).clamp_max(k)
        means[k] = float(((total[end] - total[start]) / tied).mean())
    return means
