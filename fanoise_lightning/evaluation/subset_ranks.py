"""The ranks of a subset's queries, from the embeddings of its items."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from fanoise_lightning.evaluation.embedding_table import Embeddings
from fanoise_lightning.evaluation.ranks import Ranks, rank

__all__ = ["check_subset", "subset_ranks"]

# Queries are compared with a catalogue in blocks of about this many scores.
_SCORES_PER_BLOCK = 2**22


def subset_ranks(
    embeddings: Embeddings,
    queries: Tensor,
    candidates: Tensor,
    name: str = "",
    warn: bool = True,
    *,
    num_right: Tensor | None = None,
    catalogue: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Ranks:
    """Rank the right answers of each query of a subset.

    A query is skipped if its own item or all of its right answers never arrived; other candidates that never
    arrived are ignored. A candidate that is listed twice counts once, as a right answer if it is one.

    Args:
        embeddings: those of the subset's items.
        queries: (Q,) the item of each query.
        candidates: (Q, C) the items of each query's candidates: right answers first, padded with -1.
        name: the subset, for messages.
        warn: whether to warn of items that never arrived.
        num_right: (Q,) how many of a query's candidates are right answers; by default 1.
        catalogue: (N,) different items that are candidates of all queries, except of a query that is that
            item; ``None`` for none.
        excluded: (Q, E) items of the catalogue that are no candidates of a query, padded with -1; ``None``
            for none.

    Returns:
        The ranks, on the CPU; a skipped query has no right answers.

    Raises:
        ValueError: if there is no query, a query or its first right answer is missing (negative), the shapes
            do not fit, or a score is not finite.

    Example:
        >>> table = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
        >>> items = Embeddings(table, position=torch.arange(3))
        >>> subset_ranks(items, queries=torch.tensor([0]), candidates=torch.tensor([[1, 2]])).better
        tensor([[1]])
    """
    check_subset(queries, candidates, name, num_right)
    device = embeddings.rows.device
    queries, candidates = queries.to(device), _without_repeats(candidates.to(device))
    catalogue = None if catalogue is None else catalogue.to(device)
    arrived = embeddings.position >= 0
    is_candidate = (candidates >= 0) & arrived[candidates]  # (Q, C); -1 is padding, whatever it indexes
    count = torch.ones_like(queries) if num_right is None else num_right.to(device)
    places = torch.arange(int(count.max()), device=device)
    is_right = (places < count[:, None]) & is_candidate[:, : len(places)]
    rows = (arrived[queries] & is_right.any(dim=1)).nonzero()[:, 0]
    if warn:
        parts = [queries, candidates[candidates >= 0]]
        items = torch.cat(parts if catalogue is None else [*parts, catalogue])
        _warn_of_missing(embeddings, items, name, len(rows))
    queries, candidates, is_candidate = queries[rows], candidates[rows], is_candidate[rows]
    kept, size = is_right[rows], len(queries)
    known = torch.cat([queries[:, None], candidates], dim=1)
    if excluded is not None:
        known = torch.cat([known, excluded.to(device)[rows]], dim=1)
    if catalogue is not None:
        size = max(1, _SCORES_PER_BLOCK // (len(catalogue) + candidates.shape[1]))
    blocks = []
    for start in range(0, max(1, len(rows)), max(1, size)):
        block = slice(start, start + size)
        scores, mask = embeddings.cosines(queries[block], candidates[block]), is_candidate[block]
        if catalogue is not None:
            others = embeddings.products(queries[block], catalogue)
            left = _left_in(catalogue, arrived, known[block], len(embeddings.position))
            scores, mask = torch.cat([scores, others], dim=1), torch.cat([mask, left], dim=1)
        blocks.append(rank(scores, kept[block], mask, name, row=start))
    return Ranks.cat(blocks).at(rows.cpu(), len(is_right))


def check_subset(queries: Tensor, candidates: Tensor, name: str, num_right: Tensor | None = None) -> None:
    """Raise ValueError if these are not the queries of a subset; arguments are those of `subset_ranks`."""
    if queries.ndim != 1 or candidates.ndim != 2 or len(queries) != len(candidates):
        raise ValueError(
            f"subset {name!r}: `queries` must be (Q,) and `candidates` (Q, C), got "
            f"{tuple(queries.shape)} and {tuple(candidates.shape)}"
        )
    if candidates.numel() == 0:
        raise ValueError(f"subset {name!r} has no queries or no candidates: omit it")
    incomplete = (queries < 0) | (candidates[:, 0] < 0)
    if incomplete.any():
        row = int(incomplete.nonzero()[0])
        raise ValueError(f"subset {name!r}: row {row} has no query or no ground truth (-1): omit it")
    if num_right is not None:
        if num_right.shape != queries.shape:
            raise ValueError(
                f"subset {name!r}: `num_right` must be (Q,) = {tuple(queries.shape)}, got "
                f"{tuple(num_right.shape)}"
            )
        listed = (candidates >= 0).sum(dim=1)
        wrong = (num_right < 1) | (num_right > listed)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"subset {name!r}: row {row} has {int(num_right[row])} right answers among its "
                f"{int(listed[row])} candidates; expected 1 or more, first among the candidates"
            )


def _without_repeats(candidates: Tensor) -> Tensor:
    """Repeats within a row become padding; the first, and so a right answer, stays."""
    ordered, order = candidates.sort(dim=1, stable=True)
    repeated = torch.zeros_like(candidates, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return candidates.masked_fill(torch.zeros_like(repeated).scatter(1, order, repeated), -1)


def _left_in(catalogue: Tensor, arrived: Tensor, known: Tensor, num_items: int) -> Tensor:
    """(Q, N): which items of the catalogue arrived and are not among those that a query has already."""
    column = torch.full((num_items + 1,), len(catalogue), device=catalogue.device)  # the last is for padding
    column[catalogue] = torch.arange(len(catalogue), device=catalogue.device)
    left = torch.cat([arrived[catalogue], arrived.new_zeros(1)]).repeat(len(known), 1)
    return left.scatter(1, column[known], False)[:, :-1]  # -1 finds the column of padding


def _warn_of_missing(embeddings: Embeddings, items: Tensor, name: str, num_scored: int) -> None:
    items = items.unique()
    missing = int((embeddings.position[items] < 0).sum())
    if missing:
        what = "with fewer distractors its score is too high"
        if not num_scored:
            what = "no query has both an embedding and a right answer with one, so that it has no score"
        rank_zero_warn(
            f"subset {name!r}: {missing} of {len(items)} texts and images have no embedding (broken images, "
            f"or a limited number of batches): {what}"
        )
