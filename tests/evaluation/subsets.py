"""Subsets with random embeddings, and their precision@1 by brute force."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def brute_force(queries: list[list[float]], candidates: list[list[list[float]]]) -> list[float]:
    """Cosine by cosine, in plain Python: candidate 0 of each query is the ground truth."""
    outcomes = []
    for query, own in zip(queries, candidates):
        scores = [sum(a * b for a, b in zip(query, candidate)) for candidate in own]
        tied = sum(abs(score - max(scores)) < 1e-6 for score in scores)
        outcomes.append(1 / tied if abs(scores[0] - max(scores)) < 1e-6 else 0.0)
    return outcomes


def subset(num_queries: int = 40, num_items: int = 60, dim: int = 8, seed: int = 0) -> tuple[Tensor, ...]:
    """Queries, ragged candidates and the embedding of each side; half of the queries are easy."""
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.stack(
        [torch.randperm(num_items, generator=generator)[:12] for _ in range(num_queries)]
    )
    lengths = torch.randint(1, 13, (num_queries,), generator=generator)
    candidates[torch.arange(12) >= lengths[:, None]] = -1
    queries = torch.randint(num_items, (num_queries,), generator=generator)
    queries[::2] = candidates[::2, 0]
    return queries, candidates, normalize(torch.randn(num_items, dim, generator=generator), dim=1)


def expected(queries: Tensor, candidates: Tensor, embeddings: Tensor) -> float:
    own = [[embeddings[c].tolist() for c in row if c >= 0] for row in candidates.tolist()]
    outcomes = brute_force(embeddings[queries].tolist(), own)
    return sum(outcomes) / len(outcomes)
