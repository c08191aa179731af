"""Alignment and uniformity: how near positives are, and how evenly embeddings fill the sphere.

References:
    [0] Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and
        Uniformity on the Hypersphere", ICML 2020, arXiv 2005.10242.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["alignment", "uniformity"]


def alignment(query: Tensor, target: Tensor) -> Tensor:
    """The mean squared distance of each query to its target on the unit sphere [0]: 0 is perfect.

    Args:
        query: (B, D) features of any length; they are normalised.
        target: (B, D) the target of each query.

    Returns:
        A 0-d tensor from 0 to 4, 2 for orthogonal pairs.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
        tensor(2.)
    """
    if query.shape != target.shape:
        shapes = f"{tuple(query.shape)} and {tuple(target.shape)}"
        raise ValueError(f"`query` and `target` must have one shape (B, D), got {shapes}")
    return (_unit(query) - _unit(target)).square().sum(dim=1).mean()


def uniformity(features: Tensor) -> Tensor:
    """The log of the mean Gaussian potential of all pairs on the unit sphere [0]: lower is more even.

    It is ``log mean exp(-2 ||x_i - x_j||^2)`` over pairs i < j.

    Args:
        features: (B, D) of any length, B at least 2; they are normalised.

    Returns:
        A 0-d tensor from -8 to 0; 0 if all rows have one direction, about -4 in many dimensions if the
        rows are spread evenly.

    Raises:
        ValueError: if there are fewer than 2 rows.

    Example:
        >>> uniformity(torch.eye(2))
        tensor(-4.)
    """
    rows = len(features)
    if rows < 2:
        raise ValueError(f"`features` must have at least 2 rows to be compared, got {rows}")
    unit = _unit(features)
    potentials = 4 * (unit @ unit.T - 1)  # -2 ||x_i - x_j||^2 of unit rows
    pairs = torch.ones_like(potentials, dtype=torch.bool).triu(diagonal=1)
    return potentials[pairs].logsumexp(dim=0) - math.log(rows * (rows - 1) / 2)


def _unit(features: Tensor) -> Tensor:
    features = features.detach()
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=1)
