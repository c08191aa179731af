"""Contrastive losses. A loss module takes the features of both sides; that call is where noise enters.

With several processes the candidates of a query are the targets and hard negatives of all ranks, gathered
with their gradients, and each rank computes the rows of its own pairs. The mean over the ranks, of the losses
and of the gradients as DDP takes it, is that of one process with the joined batch.

A loss that is told which queries, targets and hard negatives are the same takes neither a right answer nor
the query itself for a negative; :class:`~fanoise_lightning.candidates.ContrastiveBatch` draws the matrix. The
numbers that tell so are of one set for all three. Without them every candidate but the own target is a
negative.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fanoise_lightning.candidates import ContrastiveBatch
from fanoise_lightning.known_right import Identities
from fanoise_lightning.tiled import sum_of_blocks

__all__ = ["FeatureTap", "InfoNCE", "SigmoidLoss"]

MAX_LOGIT_SCALE = 100.0  # as in CLIP: a smaller learned temperature than 0.01 makes training unstable


class InfoNCE(nn.Module):
    """InfoNCE: each query must find its own target among the targets of the batch [0].

    The features are taken as they come: normalise them before, as
    :class:`~fanoise_lightning.ContrastiveModule` does. Logits and loss are float32 under any precision. A
    large batch is computed block by block: its logits are never held all at once.

    Args:
        temperature: what cosines are divided by; 0.02 in VLM2Vec, 0.07 at CLIP's start.
        symmetric: also let each target find its query, and take the mean of both directions (CLIP).
        learnable_temperature: make the temperature a parameter, ``logit_scale`` = log(1 / temperature), with
            1 / temperature held at 100 at most.
        gather: with several processes, contrast with the targets and hard negatives of all of them.

    Raises:
        ValueError: if the temperature is not positive and finite.

    References:
        [0] van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018.

    Example:
        >>> loss = InfoNCE(temperature=0.07)
        >>> query, target = (F.normalize(torch.randn(8, 32), dim=1) for _ in range(2))
        >>> loss(query, target).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = 0.02,
        symmetric: bool = False,
        learnable_temperature: bool = False,
        gather: bool = True,
    ) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature
        self.symmetric = symmetric
        self.learnable_temperature = learnable_temperature
        self.gather = gather
        if learnable_temperature:
            self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def scale(self) -> Tensor | float:
        """1 / temperature, what cosines are multiplied by."""
        if self.learnable_temperature:
            return self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        return 1.0 / self.temperature

    def forward(
        self,
        query: Tensor,
        target: Tensor,
        negatives: Tensor | None = None,
        target_ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        query_ids: Tensor | None = None,
        mask_pairs: Tensor | None = None,
    ) -> Tensor:
        """The mean loss over the pairs of this rank.

        Args:
            query: (B, D).
            target: (B, D); row i belongs to query i, those of other pairs are its negatives.
            negatives: (M, D), hard negatives: further candidates of every query. M may differ between ranks.
            target_ids: (B,), integers: targets with the same number are the same, and what is the same as the
                own target is no negative. -1 is like no other. Numbers may be missing on some ranks.
            negative_ids: (M,), integers, by which hard negatives are compared with targets.
            query_ids: (B,), integers: of queries with the same number, the target of each is right for all. A
                target or hard negative with the number of a query is that query itself, and no negative of
                it: where queries and targets are numbered separately, let no number be in both.
            mask_pairs: (B,), bool: in a row of False only hard negatives are left out that are known to be
                right, and no targets or queries but what the row itself is; all True by default.

        Returns:
            0-d, float32.

        Raises:
            ValueError: if the shapes do not fit, or there is nothing to contrast with; on every rank if B is
                not the same on all of them, before any features are exchanged.
        """
        with torch.autocast(query.device.type, enabled=False):
            name = type(self).__name__
            ids = Identities(target_ids, negative_ids, query_ids, mask_pairs)
            batch = ContrastiveBatch.build(name, query, target, negatives, ids, self.gather)
            loss = self._one_way(batch)
            if self.symmetric:
                loss = (loss + self._one_way(batch.reversed())) / 2
            return loss / len(query)

    def _one_way(self, batch: ContrastiveBatch) -> Tensor:
        return sum_of_blocks(partial(_cross_entropy, batch), batch.query, batch.candidates, self.scale)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, symmetric={self.symmetric}, "
            f"learnable_temperature={self.learnable_temperature}, gather={self.gather}"
        )


class SigmoidLoss(nn.Module):
    """The loss of SigLIP: of every query and target, whether they belong together [0].

    The sum of ``-log sigmoid(z * (scale * cosine + bias))`` over all queries and targets, divided by the
    number of queries, where z is 1 for a pair and -1 else. Scale and bias are learned. As in
    :class:`InfoNCE`, features are taken as they come, the loss is float32, and a large batch is computed
    block by block.

    Args:
        temperature: 1 / scale at the start; 0.1 in the paper.
        initial_bias: the bias at the start; -10 in the paper, since nearly all do not belong together.
        gather: with several processes, take the targets and hard negatives of all of them.

    Raises:
        ValueError: if the temperature is not positive and finite.

    References:
        [0] Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, arXiv 2303.15343.

    Example:
        >>> loss = SigmoidLoss()
        >>> query, target = (F.normalize(torch.randn(8, 32), dim=1) for _ in range(2))
        >>> loss(query, target).shape
        torch.Size([])
    """

    def __init__(self, temperature: float = 0.1, initial_bias: float = -10.0, gather: bool = True) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature
        self.initial_bias = initial_bias
        self.gather = gather
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.bias = nn.Parameter(torch.tensor(float(initial_bias)))

    @property
    def scale(self) -> Tensor:
        """1 / temperature, what cosines are multiplied by."""
        return self.logit_scale.exp()

    def forward(
        self,
        query: Tensor,
        target: Tensor,
        negatives: Tensor | None = None,
        target_ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        query_ids: Tensor | None = None,
        mask_pairs: Tensor | None = None,
    ) -> Tensor:
        """The loss of the queries of this rank.

        Args:
            query: (B, D).
            target: (B, D); row i belongs to query i, those of other pairs do not.
            negatives: (M, D), hard negatives: belong to no query. M may differ between ranks.
            target_ids: (B,), integers: targets with the same number are the same, and what is the same as the
                own target is left out of the sum. -1 is like no other. Numbers may be missing on some ranks.
            negative_ids: (M,), integers, by which hard negatives are compared with targets.
            query_ids: (B,), integers: of queries with the same number, the target of each is right for all. A
                target or hard negative with the number of a query is that query itself, and no negative of
                it: where queries and targets are numbered separately, let no number be in both.
            mask_pairs: (B,), bool: in a row of False only hard negatives are left out that are known to be
                right, and no targets but what the row itself is; all True by default.

        Returns:
            0-d, float32.

        Raises:
            ValueError: as :class:`InfoNCE`.
        """
        with torch.autocast(query.device.type, enabled=False):
            name = type(self).__name__
            ids = Identities(target_ids, negative_ids, query_ids, mask_pairs)
            batch = ContrastiveBatch.build(name, query, target, negatives, ids, self.gather)
            sigmoid = partial(_sigmoid, batch)
            return sum_of_blocks(sigmoid, batch.query, batch.candidates, self.scale, self.bias) / len(query)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, initial_bias={self.initial_bias}, gather={self.gather}"


class FeatureTap(nn.Module):
    """Where noise enters a loss that is no module: returns its arguments as they are.

    :class:`~fanoise_lightning.callbacks.FANoise` finds it by itself and adds its noise there.

    Example:
        >>> tap = FeatureTap()                          # in __init__: self.tap = FeatureTap()
        >>> query, target = tap(torch.eye(2), torch.eye(2))    # right before the functional loss
    """

    def forward(self, query: Tensor, target: Tensor, *negatives: Tensor) -> tuple[Tensor, ...]:
        """``(query, target, *negatives)``: (B, D), (B, D) and hard negatives (M, D), unchanged."""
        return query, target, *negatives


def _cross_entropy(
    batch: ContrastiveBatch, rows: slice, query: Tensor, candidates: Tensor, scale: Tensor | float
) -> Tensor:
    logits = batch.mask_(scale * query @ candidates.T, rows)  # (b, N)
    return F.cross_entropy(logits, batch.own[rows], reduction="sum")


def _sigmoid(
    batch: ContrastiveBatch, rows: slice, query: Tensor, candidates: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    logits = batch.mask_(torch.addmm(bias, scale * query, candidates.T), rows)  # (b, N)
    own = batch.own[rows, None]
    wrong = logits.scatter(1, own, -logits.gather(1, own))  # -z * logit
    return F.softplus(wrong).sum()  # 0 where masked


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"`temperature` must be positive and finite, got {temperature}")
