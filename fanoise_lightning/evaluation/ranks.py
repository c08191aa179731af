"""Where the right answers of queries are among their candidates."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fanoise_lightning.evaluation.ties import TIE, score_dtype

__all__ = ["Ranks", "rank"]

# Scores are ranked in blocks of about this many.
_SCORES_PER_BLOCK = 2**18
# Sorting takes about as long as counting for this many right answers that tie.
_SORTING = 8


@dataclass(frozen=True)
class Ranks:
    """The places of the right answers of Q queries; a query that could not be scored has none.

    A right answer ties with candidates of nearly its score: it is equally likely to be at any of the places
    ``better + 1`` to ``better + tied``.

    Args:
        is_right: (Q, R) bool, False where a query has no further right answer.
        better: (Q, R) int64, how many candidates are before each right answer and all that tie with it; 0
            where there is none.
        tied: (Q, R) int64, how many tie with it, itself included; 1 where there is none.
        first_tied: (Q,) int64, how many right answers tie for being the first of them.
        num_candidates: (Q,) int64.
    """

    is_right: Tensor
    better: Tensor
    tied: Tensor
    first_tied: Tensor
    num_candidates: Tensor

    def __len__(self) -> int:
        return len(self.is_right)

    @property
    def is_scored(self) -> Tensor:
        """(Q,) bool."""
        return self.is_right.any(dim=1)

    @property
    def first(self) -> tuple[Tensor, Tensor]:
        """Of the first right answer of each query: ``better`` and ``tied``, (Q,)."""
        place = self.better.masked_fill(~self.is_right, torch.iinfo(torch.int64).max).argmin(dim=1)
        rows = torch.arange(len(self))
        return self.better[rows, place], self.tied[rows, place]

    def precision_at_one(self) -> Tensor:
        """How likely the first candidate is a right answer, (Q,) float64; NaN where nothing was scored."""
        better, tied = self.first
        won = torch.where(better == 0, self.first_tied / tied.double(), 0.0)
        return won.masked_fill(~self.is_scored, torch.nan)

    def by_chance(self) -> Ranks:
        """The ranks if all candidates of a query tied: what any metric scores by chance."""
        everything = self.num_candidates[:, None].expand_as(self.tied)
        num_right = self.is_right.sum(dim=1)
        return Ranks(self.is_right, torch.zeros_like(self.better), everything, num_right, self.num_candidates)

    def at(self, rows: Tensor, num_queries: int) -> Ranks:
        """The same ranks as those of the queries `rows`, (Q,), among `num_queries`."""
        parts = {}
        for field in fields(self):
            value = getattr(self, field.name)
            filler = 1 if field.name == "tied" else 0
            parts[field.name] = value.new_full((num_queries, *value.shape[1:]), filler)
            parts[field.name][rows] = value
        return Ranks(**parts)

    @classmethod
    def cat(cls, parts: list[Ranks]) -> Ranks:
        """The ranks of further queries below."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def rank(
    scores: Tensor,
    is_right: Tensor,
    mask: Tensor | None = None,
    name: str = "",
    atol: float = TIE,
    row: int = 0,
    columns: Tensor | None = None,
) -> Ranks:
    """Rank the right answers of queries among all of their candidates.

    Args:
        scores: (Q, C), higher is better.
        is_right: (Q, R) bool, which of `columns` are right answers.
        mask: (Q, C) bool, False where there is no candidate; ``None`` if all are candidates.
        name: the subset, for messages.
        atol: scores this close to each other tie; the default suits cosines.
        row: the number of the first query, for messages.
        columns: (Q, R), where the right answers of each query are; by default in the first R columns. Any
            number where `is_right` is False.

    Returns:
        The ranks, on the CPU.

    Raises:
        ValueError: if the score of a candidate is not finite.

    Example:
        >>> ranks = rank(torch.tensor([[0.5, 0.9, 0.5, 0.1]]), is_right=torch.tensor([[True]]))
        >>> ranks.better, ranks.tied
        (tensor([[1]]), tensor([[2]]))
    """
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    if columns is None:
        columns = torch.arange(is_right.shape[1], device=scores.device).expand(is_right.shape)
    columns = columns.masked_fill(~is_right, 0)
    size = max(1, _SCORES_PER_BLOCK // scores.shape[1])
    _check_finite(scores, mask, name, row)
    parts = scores.split(size), columns.split(size), is_right.split(size), mask.split(size)
    return Ranks.cat([_rank_block(*block, atol) for block in zip(*parts, strict=True)])


def _check_finite(scores: Tensor, mask: Tensor, name: str, row: int) -> None:
    if scores.sum().isfinite():  # several times as fast as one by one
        return
    broken = mask & ~scores.isfinite()
    if broken.any():
        first = row + int(broken.any(dim=1).nonzero()[0])
        raise ValueError(
            f"subset {name!r}: {int(broken.sum())} of {int(mask.sum())} scores are not finite (first in row "
            f"{first}): the encoder returned NaN or infinity. Check the "
            "learning rate, the precision, and the inputs of that row"
        )


def _rank_block(scores: Tensor, columns: Tensor, is_right: Tensor, mask: Tensor, atol: float) -> Ranks:
    # float32 would round `atol` differently for each score
    scores = scores.to(score_dtype(scores.device)).masked_fill(~mask, -torch.inf)
    is_right = is_right & mask.gather(1, columns)
    right = scores.gather(1, columns)
    better, tied, lowest = _places(scores, right, is_right, atol)
    best = better.masked_fill(~is_right, torch.iinfo(torch.int64).max).argmin(dim=1, keepdim=True)
    first_tied = ((right >= lowest.gather(1, best)) & is_right).sum(dim=1)
    better, tied = better.masked_fill(~is_right, 0), tied.masked_fill(~is_right, 1)
    return Ranks(*(part.cpu() for part in (is_right, better, tied, first_tied, mask.sum(dim=1))))


def _places(scores: Tensor, right: Tensor, is_right: Tensor, atol: float) -> tuple[Tensor, Tensor, Tensor]:
    """How many scores are before each right answer, how many tie with it, and the lowest of these."""
    if right.shape[1] > _SORTING:
        return _by_sorting(scores, right, atol)
    better = torch.cat([(scores > own + atol).sum(dim=1, keepdim=True) for own in right.split(1, 1)], dim=1)
    within = torch.cat([(scores >= own - atol).sum(dim=1, keepdim=True) for own in right.split(1, 1)], dim=1)
    places = better, within - better, right - atol
    ties = ((places[1] > 1) & is_right).any(dim=1)
    if ties.any():
        for place, exact in zip(places, _of_ties(scores[ties], right[ties], atol)):
            place[ties] = exact
    return places


def _of_ties(scores: Tensor, right: Tensor, atol: float) -> tuple[Tensor, Tensor, Tensor]:
    better, tied, lowest = (torch.empty_like(right, dtype=d) for d in (torch.long, torch.long, right.dtype))
    for column, own in enumerate(right.unbind(dim=1)):
        before = scores > (own + atol)[:, None]
        better[:, column] = before.sum(dim=1)
        # As in `share_won`, a tie reaches down from its best score, the best that is not before the right one
        lowest[:, column] = scores.masked_fill(before, -torch.inf).amax(dim=1) - atol
        tied[:, column] = (scores >= lowest[:, column, None]).sum(dim=1) - better[:, column]
    return better, tied, lowest


def _by_sorting(scores: Tensor, right: Tensor, atol: float) -> tuple[Tensor, Tensor, Tensor]:
    ordered = scores.sort(dim=1).values
    end = torch.searchsorted(ordered, right + atol, right=True)
    lowest = ordered.gather(1, (end - 1).clamp_min(0)) - atol
    return scores.shape[1] - end, end - torch.searchsorted(ordered, lowest), lowest
