"""Matryoshka: embeddings whose first dimensions can be used alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fanoise_lightning._checks import check_positive
from fanoise_lightning.losses.contrastive_batch import ContrastiveBatch
from fanoise_lightning.losses.in_batch_loss import InBatchLoss

__all__ = ["MatryoshkaLoss"]


class MatryoshkaLoss(InBatchLoss):
    """The weighted mean of a loss over embeddings that are cut to their first dimensions [0].

    Afterwards ``encode(truncate_dim=...)`` may take any of `dims`, at some cost in accuracy. Cut embeddings
    are normalised again; all D dimensions are used as given, so that noise on them has its full length. With
    several processes, candidates are exchanged once for all of `dims`.

    Args:
        loss: what is computed for each length, :class:`InfoNCE` or :class:`SigmoidLoss`.
        dims: the lengths. The full D is among them, unless embeddings are never used whole.
        weights: how much each length counts; by default all count the same.

    Raises:
        TypeError: for another loss.
        ValueError: if `dims` is empty, holds a number below 1 or one twice, if there is not one positive
            weight for each, or, in the first step, if a length is above D.

    References:
        [0] Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, arXiv 2205.13147.

    Example:
        >>> import torch
        >>> from fanoise_lightning import InfoNCE
        >>> loss = MatryoshkaLoss(InfoNCE(temperature=0.07), dims=[32, 16, 8])
        >>> query, target = (torch.nn.functional.normalize(torch.randn(8, 32), dim=1) for _ in range(2))
        >>> loss(query, target).shape
        torch.Size([])
    """

    def __init__(
        self, loss: InBatchLoss, dims: Sequence[int], weights: Sequence[float] | None = None
    ) -> None:
        if not isinstance(loss, InBatchLoss):
            raise TypeError(f"MatryoshkaLoss takes InfoNCE or SigmoidLoss, got {type(loss).__name__}")
        super().__init__(loss.gather)
        if not isinstance(dims, Sequence) or not dims or len(set(dims)) < len(dims):
            raise ValueError(f"`dims` must be a list of different lengths, got {dims}")
        for dim in dims:
            if not isinstance(dim, int) or dim < 1:
                raise ValueError(f"`dims` must be whole numbers of at least 1, got {dim!r}")
        if weights is not None and len(weights) != len(dims):
            raise ValueError(f"`weights` has {len(weights)} numbers for {len(dims)} `dims`")
        for weight in weights or ():
            check_positive("weights", weight)
        self.loss = loss
        self.dims, self.weights = list(dims), None if weights is None else list(weights)

    @property
    def scale(self) -> Tensor | float | None:
        """That of the loss, what cosines are multiplied by."""
        return getattr(self.loss, "scale", None)

    def total(self, batch: ContrastiveBatch) -> Tensor:
        """The weighted mean over the lengths, 0-d, of the loss summed over the queries of this rank."""
        size = batch.query.shape[1]
        if max(self.dims) > size:
            raise ValueError(f"`dims` {self.dims} of MatryoshkaLoss is above the {size} of the embeddings")
        weights = self.weights or [1.0] * len(self.dims)
        losses = [weight * self.loss.total(batch.cut(dim)) for dim, weight in zip(self.dims, weights)]
        return sum(losses[1:], losses[0]) / sum(weights)

    def extra_repr(self) -> str:
        return f"dims={self.dims}, weights={self.weights}"
