"""FANoise: Gaussian noise shaped by the singular values of the batch [0].

With X = U diag(s) V^T the features of one side of the batch, the noise is

    (alpha / sqrt(D)) * (N * S) V^T,    N (B, R) i.i.d. standard normal,

where S_i is 1 ("uniform", and then in all D directions), s_i / mean(s) ("linear") or
sqrt(s_i) / mean(sqrt(s)) ("sublinear"). Only the row covariance V diag(S^2) V^T matters, so no SVD is needed:

    linear      N X / mean(s)                    N (B, B): the nuclear norm alone
    sublinear   N (X X^T)^(-1/4) X / mean(sqrt(s))    B <= D: a root of a (B, B) matrix
                N (X^T X)^(1/4) / mean(sqrt(s))       B > D: a root of a (D, D) matrix

References:
    [0] "FANoise: Singular Value-Adaptive Noise Modulation for Robust Multimodal Representation Learning",
        AAAI 2026, arXiv 2511.20997.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fanoise_lightning.spectrum import as_matrix, full_precision, gram_root, nuclear_norm

__all__ = ["Energy", "Scaling", "feature_noise"]

Scaling = Literal["uniform", "linear", "sublinear"]
Energy = Literal["paper", "constant"]


@dataclass(frozen=True)
class NoiseShape:
    """A factor F of the covariance of a noise row: the row is z F, with z standard normal.

    Args:
        dim: D, the length of a noise row.
        factors: none (the identity), one or two matrices whose product is F, (K, D).
    """

    dim: int
    factors: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> NoiseShape:
        """The same shape on another device."""
        return NoiseShape(self.dim, tuple(factor.to(device) for factor in self.factors))

    def unless_broken(self, other: NoiseShape) -> NoiseShape:
        """This shape, or ``other`` (of the same sizes) if this one is not finite; decided on the device."""
        if not self.factors or [f.shape for f in self.factors] != [f.shape for f in other.factors]:
            return self
        finite = torch.stack([factor.isfinite().all() for factor in self.factors]).all()
        return NoiseShape(
            self.dim, tuple(torch.where(finite, own, kept) for own, kept in zip(self.factors, other.factors))
        )

    def sample(self, like: Tensor, alpha: float, generator: torch.Generator | None = None) -> Tensor:
        """Draw noise of the shape, device and dtype of the features ``like`` (B, D)."""
        work = torch.float64 if like.dtype == torch.float64 else torch.float32
        width = len(self.factors[0]) if self.factors else self.dim
        noise = torch.randn(len(like), width, dtype=work, device=like.device, generator=generator)
        with full_precision(like):
            for factor in self.factors:
                noise = noise @ factor
            return (noise * (alpha / math.sqrt(self.dim))).to(like.dtype)


def noise_shape(features: Tensor, scaling: Scaling = "sublinear", energy: Energy = "paper") -> NoiseShape:
    """The shape of the noise for the features of one side, (B, D); see :func:`feature_noise`."""
    check_choice("scaling", scaling, Scaling)
    check_choice("energy", energy, Energy)
    with full_precision(features):
        x = as_matrix(features)
        rows, dim = x.shape
        if scaling == "uniform":
            return NoiseShape(dim)
        if scaling == "linear":
            scale = math.sqrt(dim) / x.norm() if energy == "constant" else min(rows, dim) / nuclear_norm(x)
            return NoiseShape(dim, (x * scale,))
        if rows > dim:
            return moment_shape(x.T @ x, dim, scaling, energy)
        left, total = gram_root(x @ x.T, -0.5, 0.5)
        scale = math.sqrt(dim) / (left @ x).norm() if energy == "constant" else rows / total
        return NoiseShape(dim, (left * scale, x))


def moment_shape(moment: Tensor, rank: int, scaling: Scaling, energy: Energy = "paper") -> NoiseShape:
    """The shape of the noise from a second moment X^T X instead of the features.

    Args:
        moment: (D, D), symmetric, positive semi-definite.
        rank: over how many singular values the means of the scaling laws go.
        scaling: as in :func:`feature_noise`.
        energy: as in :func:`feature_noise`.
    """
    with full_precision(moment):
        dim = len(moment)
        if scaling == "uniform":
            return NoiseShape(dim)
        power = 1.0 if scaling == "linear" else 0.5
        left, total = gram_root(moment, power, power)
        scale = math.sqrt(dim) / left.norm() if energy == "constant" else rank / total
        return NoiseShape(dim, (left * scale,))


def feature_noise(
    features: Tensor,
    alpha: float = 0.1,
    scaling: Scaling = "sublinear",
    *,
    energy: Energy = "paper",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The noise that FANoise adds to the features of one side of a batch.

    Nothing here waits for a value of the device, and no gradient flows through it.

    Args:
        features: (B, D), one row an embedding; any floating dtype, the spectrum is taken in float32.
        alpha: the noise level; under ``energy="constant"`` the expected norm of a noise row.
        scaling: how the noise follows the singular values s: ``"uniform"`` not at all, ``"linear"`` like s,
            ``"sublinear"`` like sqrt(s).
        energy: ``"paper"`` is the published formula, whose energy grows with the spread of the spectrum and
            with B / D; ``"constant"`` rescales it to E||noise row||^2 = alpha^2 for every law and shape.
        generator: a random number generator on the features' device; ``None`` uses the global one.

    Returns:
        (B, D) noise with the features' dtype and device, to be added to them.

    Raises:
        ValueError: if alpha is negative or not finite, a name is unknown, ``features`` is not a non-empty
            floating point matrix, or (CPU tensors only; elsewhere the check would wait for the device, and
            the noise is NaN) features are all zero or not finite.

    Example:
        >>> features = torch.nn.functional.normalize(torch.randn(16, 64), dim=1)
        >>> feature_noise(features, alpha=0.5).shape
        torch.Size([16, 64])
    """
    check_alpha(alpha)
    if features.device.type == "cpu" and features.numel():
        if not features.isfinite().all():
            bad = int((~features.isfinite()).sum())
            raise ValueError(f"`features` holds {bad} values of {features.numel()} that are not finite")
        if not features.any():
            raise ValueError("`features` are all zero: there is no spectrum to shape noise by")
    return noise_shape(features, scaling, energy).sample(features, alpha, generator)


def check_alpha(alpha: float) -> None:
    """Raise ``ValueError`` unless ``alpha`` is a finite number from 0 up."""
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"`alpha` must be finite and at least 0, got {alpha}")


def check_choice(name: str, value: str, choices: object) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the ``Literal`` type's values."""
    if value not in get_args(choices):
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")
