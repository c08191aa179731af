"""FANoise: Gaussian noise shaped by the singular values of the batch [0].

With X = U diag(s) V^T the features of one side of the batch, the noise is

    (alpha / sqrt(D)) * (N * S) V^T,    N (B, R) i.i.d. standard normal,

where S_i is 1 ("uniform", in all D directions), s_i / mean(s) ("linear") or sqrt(s_i) / mean(sqrt(s))
("sublinear"). Only the row covariance V diag(S^2) V^T matters, so no SVD is needed:

    linear      N X / mean(s)                         N (B, B): needs only the nuclear norm
    sublinear   N (X X^T)^(-1/4) X / mean(sqrt(s))    B <= D: a root of a (B, B) matrix
                N (X^T X)^(1/4) / mean(sqrt(s))       B > D: a root of a (D, D) matrix

The shape of the noise and its amount are separate: a factor F of arbitrary scale is rescaled so that
||F||_F^2 is the total, which is D for ``energy="constant"`` and that of the law for ``energy="paper"``. If
the law scales with s^p:

    total = R^2 sum(s^(2p)) / (sum s^p)^2,    E||noise row||^2 = alpha^2 total / D

References:
    [0] "FANoise: Singular Value-Adaptive Noise Modulation for Robust Multimodal Representation Learning",
        AAAI 2026, arXiv 2511.20997.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fanoise_lightning._checks import check_choice
from fanoise_lightning.laws import Law, Scaling, check_scaling, law_weights
from fanoise_lightning.spectrum import (
    as_matrix,
    exact_svd,
    frobenius_norm,
    full_precision,
    half_power,
    largest,
    moment_root,
    moment_spectrum,
    moment_sums,
    power_sums,
)

__all__ = ["Energy", "Scaling", "feature_noise"]

Energy = Literal["paper", "constant"]

_POWER = {"linear": 1.0, "sublinear": 0.5}


@dataclass(frozen=True)
class NoiseShape:
    """A factor F of the covariance of a noise row: a row is z F, with z standard normal.

    Args:
        dim: D, the length of a noise row.
        factors: no matrix (F is the identity), or one or two whose product is F, (K, D).
    """

    dim: int
    factors: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> NoiseShape:
        """The same shape on another device."""
        return NoiseShape(self.dim, tuple(factor.to(device) for factor in self.factors))

    def unless_broken(self, other: NoiseShape) -> NoiseShape:
        """This shape, or ``other`` of the same size if this one is not finite; decided on the device."""
        if not self.factors or [f.shape for f in self.factors] != [f.shape for f in other.factors]:
            return self
        finite = torch.stack([largest(factor) for factor in self.factors]).isfinite().all()
        return NoiseShape(
            self.dim, tuple(torch.where(finite, own, kept) for own, kept in zip(self.factors, other.factors))
        )

    def folded(self) -> NoiseShape:
        """The same shape with at most one factor, which is faster to draw from more than once."""
        if len(self.factors) < 2:
            return self
        with full_precision(self.factors[0]):
            return NoiseShape(self.dim, (torch.linalg.multi_dot(self.factors),))

    def sample(self, like: Tensor, alpha: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw noise of the shape, device and dtype of the features ``like`` (B, D).

        Args:
            like: the features that get the noise.
            alpha: the noise level, a number or a 0-d tensor.
            generator: a random number generator on the features' device; ``None`` uses the global one.
        """
        work = torch.float64 if like.dtype == torch.float64 else torch.float32
        width = len(self.factors[0]) if self.factors else self.dim
        noise = torch.randn(len(like), width, dtype=work, device=like.device, generator=generator)
        with full_precision(like):
            noise *= alpha / math.sqrt(self.dim)
            for factor in self.factors:
                noise = noise @ factor.to(work)
            return noise.to(like.dtype)


def noise_shape(features: Tensor, scaling: Scaling = "sublinear", energy: Energy = "paper") -> NoiseShape:
    """The shape of the noise for the features of one side, (B, D); see :func:`feature_noise`."""
    check_scaling(scaling)
    check_choice("energy", energy, Energy)
    x = as_matrix(features)
    rows, dim = x.shape
    if scaling == "uniform":
        return NoiseShape(dim)
    with full_precision(x):
        if not isinstance(scaling, str):
            return _law_shape(scaling, *exact_svd(x), None if energy == "paper" else dim, x)
        x = x / largest(x)  # whose squares neither overflow nor vanish; the noise ignores the scale
        if scaling == "linear":
            total = dim if energy == "constant" else law_total(x, scaling)
            return _scaled((x,), x.norm(), total)
        factors, root_sum, nuclear_norm = half_power(x)
        total = dim if energy == "constant" else _total(min(rows, dim), root_sum, nuclear_norm)
        return _scaled(factors, nuclear_norm.sqrt(), total)


def moment_shape(
    moment: Tensor,
    scaling: Scaling,
    total: float | Tensor | None = None,
    *,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
) -> NoiseShape:
    """The shape of the noise from a second moment X^T X instead of the features.

    Args:
        moment: (D, D), symmetric, positive semi-definite, of arbitrary scale. It should be float64, as
            :func:`~fanoise_lightning.spectrum.second_moment` returns it.
        scaling: as in :func:`feature_noise`.
        total: the amount of noise, D E||noise row||^2 / alpha^2: D for ``energy="constant"``, for
            ``energy="paper"`` the :func:`law_total` of a batch. By default the law's own for the moment.
        rank: R in the law's own total: the number of singular values that its means go over. By default D.
        dtype: the dtype of the shape; by default the moment's. For float32 features float32 is enough.

    Raises:
        torch.linalg.LinAlgError: on the CPU, if the moment is not finite. Elsewhere the shape is NaN.
    """
    check_scaling(scaling)
    dim = len(moment)
    if scaling == "uniform":
        return NoiseShape(dim)
    with full_precision(moment):
        if not isinstance(scaling, str):
            values, vectors = (part[: rank or dim] for part in moment_spectrum(moment))
            return _law_shape(scaling, vectors.T, values, vectors, total, moment.to(dtype or moment.dtype))
        factor, power_sum, square = moment_root(moment / largest(moment), _POWER[scaling])
        if total is None:
            total = _total(rank or dim, power_sum, square)
        return _scaled((factor.to(dtype or moment.dtype),), square.sqrt(), total)


def law_total(features: Tensor, scaling: Scaling) -> Tensor:
    """The amount of noise by the published formula for features (B, D): D E||noise row||^2 / alpha^2, 0-d.

    Raises:
        ValueError: if the scaling law is unknown, or ``features`` is not a non-empty floating point matrix.
        torch.linalg.LinAlgError: on the CPU, if features are not finite. Elsewhere the result is NaN.

    Example:
        >>> law_total(torch.diag(torch.tensor([3.0, 1.0])), "linear")  # s / mean(s) = 1.5 and 0.5
        tensor(2.5000)
    """
    check_scaling(scaling)
    with full_precision(features):
        x = as_matrix(features)
        if scaling == "uniform":
            return x.new_full((), x.shape[1])
        if not isinstance(scaling, str):
            weights = law_weights(scaling, exact_svd(x)[1])
            return _total(min(x.shape), weights.sum(), weights.square().sum()).to(x.dtype)
        return _total(min(x.shape), *power_sums(x / largest(x), _POWER[scaling])).to(x.dtype)


def moment_total(moment: Tensor, rank: int, scaling: Scaling) -> Tensor:
    """The :func:`law_total` of a batch with the second moment X^T X (D, D) and R = ``rank`` = min(B, D)."""
    check_scaling(scaling)
    if scaling == "uniform":
        return moment.new_full((), len(moment))
    if not isinstance(scaling, str):
        raise ValueError(
            "a scaling law that is a function needs the singular values of a batch, not of an average"
        )
    with full_precision(moment):
        return _total(rank, *moment_sums(moment / largest(moment), _POWER[scaling])).to(moment.dtype)


def row_norm(features: Tensor) -> Tensor:
    """The root mean square norm of the rows of features (B, D), 0-d, in float32 or float64."""
    x = as_matrix(features)
    return frobenius_norm(x) / math.sqrt(len(x))


def _law_shape(
    law: Law, left: Tensor, values: Tensor, right: Tensor, total: float | Tensor | None, like: Tensor
) -> NoiseShape:
    """The shape for a law that is a function, from U (B, R), s (R,), V^T (R, D); `total` None is its own.

    The factor is U diag(w) V^T, not diag(w) V^T: the signs of singular vectors depend on rounding, and after
    a change of 1e-16 the same random numbers would give different noise. In the product the signs cancel.
    """
    weights = law_weights(law, values)
    square = weights.square().sum()
    if total is None:
        total = _total(len(values), weights.sum(), square)
    factor = ((left * weights) @ right).to(like)  # MPS decomposes on the CPU
    return _scaled((factor,), square.sqrt().to(like), torch.as_tensor(total).to(like))


def _total(rank: int, power_sum: Tensor, square: Tensor) -> Tensor:
    return rank**2 * square / power_sum.square()


def _scaled(factors: tuple[Tensor, ...], norm: Tensor, total: float | Tensor) -> NoiseShape:
    """The shape of a factor F with ||F||_F = ``norm``, scaled to ||F||_F^2 = ``total``."""
    first, *rest = factors
    return NoiseShape(factors[-1].shape[1], (first * (total**0.5 / norm), *rest))


def feature_noise(
    features: Tensor,
    alpha: float = 0.1,
    scaling: Scaling = "sublinear",
    *,
    energy: Energy = "paper",
    relative: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The noise that FANoise adds to the features of one side of a batch.

    Nothing here waits for a value of the device, and no gradient flows through it.

    Args:
        features: (B, D), one embedding per row, of any floating dtype; the noise is drawn in float32, or in
            float64 for such features.
        alpha: the noise level; under ``energy="constant"`` the root mean square norm of a noise row.
        scaling: how the noise in a direction follows its singular value s: ``"uniform"`` is the same in all
            directions, ``"linear"`` is proportional to s, ``"sublinear"`` to sqrt(s). Or a function from the
            singular values (R,), R = min(B, D), to a weight for each, at least 0.
        energy: ``"paper"`` is the published formula, whose energy grows with the spread of the spectrum and
            with B / D; ``"constant"`` rescales it to E||noise row||^2 = alpha^2 for every law and shape.
        relative: multiply alpha by the root mean square norm of the rows. The paper's alpha is absolute, for
            rows of unit length; a relative alpha means the same for rows of any length.
        generator: a random number generator on the features' device; ``None`` uses the global one.

    Returns:
        Noise (B, D) of the features' dtype and device, to be added to them.

    Raises:
        ValueError: if alpha is negative or not finite, if ``scaling`` or ``energy`` is unknown, if a function
            returns something other than weights, or if
            ``features`` is not a non-empty floating point matrix. On the CPU, if the features are all zero
            or not finite too; elsewhere that check would wait for the device, and the noise is NaN.

    Example:
        >>> features = torch.nn.functional.normalize(torch.randn(16, 64), dim=1)
        >>> feature_noise(features, alpha=0.5).shape
        torch.Size([16, 64])
    """
    check_alpha(alpha)
    if features.device.type == "cpu" and features.numel():
        size = largest(features)
        if not size.isfinite():
            bad = int((~features.isfinite()).sum())
            raise ValueError(f"{bad} of the {features.numel()} values in `features` are not finite")
        if size == 0:
            raise ValueError("`features` are all zero: there is no spectrum to shape the noise")
    level = alpha * row_norm(features) if relative else alpha
    return noise_shape(features, scaling, energy).sample(features, level, generator)


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless ``alpha`` is finite and at least 0."""
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"`alpha` must be finite and at least 0, got {alpha}")
