"""A rotation of embeddings after which the first dimensions hold the most of them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_rotation", "spectral_rotation"]


def spectral_rotation(embeddings: Tensor) -> Tensor:
    """The right singular vectors of embeddings, the strongest first, as the columns of a rotation.

    ``embeddings @ rotation`` has the same norms and the same cosines. Among all rotations, it keeps the most
    of the sample's energy in the first d dimensions, for every d at once (Eckart and Young): a cheap way to
    shorter embeddings, without the training that :class:`~fanoise_lightning.MatryoshkaLoss` needs.

    Args:
        embeddings: (N, D), a sample of what will be embedded, queries and targets alike; some thousand rows.

    Returns:
        (D, D), float32, orthogonal. The largest entry of each column is positive.

    Raises:
        ValueError: if the embeddings are not a matrix of finite numbers with at least one row.

    Example:
        >>> rotation = spectral_rotation(torch.tensor([[0.0, 3.0], [1.0, 0.0]]))
        >>> torch.tensor([[1.0, 3.0]]) @ rotation
        tensor([[3., 1.]])
    """
    if embeddings.ndim != 2 or not len(embeddings) or not embeddings.isfinite().all():
        raise ValueError(
            "a rotation needs embeddings (N, D) of finite numbers, at least one row, got shape "
            f"{tuple(embeddings.shape)}"
        )
    x = embeddings.double()
    _, vectors = torch.linalg.eigh(x.T @ x)  # ascending
    rotation = vectors.flip(1)
    largest = rotation.gather(0, rotation.abs().argmax(dim=0, keepdim=True))
    return (rotation * largest.sign()).float()


def check_rotation(rotation: Tensor, dim: int) -> None:
    """Raise ValueError unless a matrix is (dim, dim) and orthogonal."""
    if rotation.shape != (dim, dim):
        raise ValueError(f"`rotation` must be ({dim}, {dim}), as embeddings are, got {tuple(rotation.shape)}")
    if not (error := (rotation.T @ rotation - torch.eye(dim)).abs().max()) < 1e-3:  # NaN is not
        raise ValueError(f"`rotation` is not orthogonal (R^T R is off by {error:.2g}): scores would change")
