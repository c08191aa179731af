"""The spectrum of a feature matrix: singular values, right singular vectors, and roots of its Gram matrix.

On the CPU everything is computed from the smaller Gram matrix, ``X X^T`` (B, B) or ``X^T X`` (D, D), whose
eigenvalues are the squared singular values.

Other devices may lack fast float64, or make the host wait for ``eigh``. There, what the noise needs is
computed by matrix products only, in the features' own precision and without squaring: with the orthogonal
factor ``Q = U V^T`` of X = U diag(s) V^T, ``H = Q X^T`` is ``U diag(s) U^T``; the root of H gives the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from fanoise_lightning._checks import check_choice
from fanoise_lightning.gram import (
    eigen,
    eigenvalues,
    on_double,
    power_of,
    powers,
    smaller_gram,
    spectrum_of,
    without_rounding,
)
from fanoise_lightning.newton_schulz import orthogonal_factor, square_root

__all__ = ["decompose", "effective_rank", "singular_values"]

Method = Literal["gram", "svd"]


def singular_values(features: Tensor, method: Method = "gram") -> Tensor:
    """Singular values, largest first.

    Args:
        features: (B, D), any floating dtype.
        method: ``"gram"`` takes the eigenvalues of the smaller Gram matrix, which loses singular values below
            1e-7 of the largest; ``"svd"`` is exact.

    Returns:
        (R,), R = min(B, D), float32, or float64 for such features.

    Raises:
        ValueError: if ``features`` is not a non-empty floating point matrix, or the method is unknown.
        torch.linalg.LinAlgError: if the decomposition does not converge (non-finite features).

    Example:
        >>> singular_values(torch.diag(torch.tensor([3.0, 4.0])))
        tensor([4., 3.])
    """
    check_choice("method", method, Method)
    with full_precision(features):
        x = as_matrix(features)
        if method == "svd":
            return torch.linalg.svdvals(x)
        return eigenvalues(smaller_gram(x)).flip(0).clamp_min(0).sqrt().to(x)


def decompose(features: Tensor, method: Method = "gram") -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors, strongest direction first.

    Args:
        features: (B, D), any floating dtype.
        method: ``"gram"`` takes the eigenvectors of the smaller Gram matrix, ``"svd"`` is exact. The Gram
            route sets values below 1e-7 of the largest to zero; with B <= D their vectors are zero too.

    Returns:
        values (R,) and vectors (R, D) with orthonormal rows, R = min(B, D), float32, or float64 for such
        features.

    Raises:
        ValueError: if ``features`` is not a non-empty floating point matrix, or the method is unknown.
        torch.linalg.LinAlgError: if the decomposition does not converge (non-finite features).

    Example:
        >>> values, vectors = decompose(torch.diag(torch.tensor([3.0, 4.0])))
        >>> values, vectors.abs()
        (tensor([4., 3.]), tensor([[0., 1.],
                [1., 0.]]))
    """
    check_choice("method", method, Method)
    with full_precision(features):
        x = as_matrix(features)
        if method == "svd":
            _, values, vectors = torch.linalg.svd(x, full_matrices=False)
            return values, vectors
        squares, vectors = (part.flip(-1) for part in eigen(smaller_gram(x)))
        if x.shape[0] <= x.shape[1]:
            vectors = on_double(x).T @ (vectors * powers(squares, -0.5))
        return squares.sqrt().to(x), vectors.T.to(x)


def effective_rank(values: Tensor) -> Tensor:
    """Effective rank: the exponential of the entropy of the normalised singular values.

    Between 1 (one direction) and R (all directions equally strong). Roy and Vetterli, "The effective rank: a
    measure of effective dimensionality", EUSIPCO 2007.

    Args:
        values: (R,) singular values, non-negative.

    Returns:
        A 0-d tensor on the device of ``values``; NaN if all values are zero.

    Example:
        >>> round(effective_rank(torch.ones(8)).item(), 3)
        8.0
    """
    return torch.special.entr(values / values.sum()).sum().exp()


@contextmanager
def full_precision(features: Tensor) -> Iterator[None]:
    """No gradient, no autocast, no TF32: squared singular values need every bit of float32."""
    precision = torch.get_float32_matmul_precision()
    device = features.device.type
    # each switch costs as much as a small product
    autocast = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), autocast:
            yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)


def as_matrix(features: Tensor) -> Tensor:
    """Detached features (B, D) in float32, or in float64 if they already are: eigh has no half precision."""
    if features.ndim != 2 or features.numel() == 0 or not features.is_floating_point():
        raise ValueError(
            f"`features` must be a non-empty floating point matrix (B, D), got {features.dtype} of shape "
            f"{tuple(features.shape)}"
        )
    features = features.detach()
    return features if features.dtype == torch.float64 else features.float()


def largest(x: Tensor) -> Tensor:
    """The largest absolute value, 0-d, in one pass; NaN comes through."""
    low, high = x.detach().aminmax()  # isfinite().all() takes ten times as long, and any() four times
    return torch.maximum(-low, high)


def frobenius_norm(x: Tensor) -> Tensor:
    """The Frobenius norm, 0-d, whose squares cannot overflow or underflow; NaN if x is 0 or not finite."""
    scale = largest(x)
    return (x / scale).norm() * scale


def second_moment(features: Tensor) -> Tensor:
    """``X^T X`` of features (B, D), to be summed over batches or ranks: (D, D) float64, float32 on MPS.

    Float32 would lose singular values below 3e-4 of the largest, and count the rounding errors of null
    directions: with fewer rows than dimensions, that costs up to 12 % of the energy of sublinear noise.
    """
    with full_precision(features):
        x = as_matrix(features)
        x = x if x.device.type == "mps" else x.double()
        return x.T @ x


def power_sums(x: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """The 0-d sums of s ** power and of s ** (2 power) over the singular values of x, (B, D).

    Args:
        x: as :func:`as_matrix` returns it.
        power: 0.5 or 1.

    Raises:
        torch.linalg.LinAlgError: on the CPU, if x is not finite. Elsewhere the result is NaN.
    """
    if not _by_products(x):
        return _sums(without_rounding(eigenvalues(smaller_gram(x))), power)
    x = x if x.shape[0] <= x.shape[1] else x.T
    polar = orthogonal_factor(x)
    nuclear_norm = (polar * x).sum()
    if power == 1:
        return nuclear_norm, x.norm().square()
    return square_root(polar @ x.T)[1], nuclear_norm


def half_power(x: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """A factor of ``V diag(s) V^T``, where x = U diag(s) V^T is (B, D), as :func:`as_matrix` returns it.

    Returns:
        One or two matrices, whose product F (R, D) has ``F^T F = V diag(s) V^T``, and the 0-d sums of
        sqrt(s) and of s, R = min(B, D).

    Raises:
        torch.linalg.LinAlgError: on the CPU, if x is not finite. Elsewhere the result is NaN.
    """
    wide = x.shape[0] <= x.shape[1]
    if _by_products(x):
        rows = x if wide else x.T
        polar = orthogonal_factor(rows)
        root, root_sum = square_root(polar @ rows.T)
        return (root, polar) if wide else (root,), root_sum, (polar * rows).sum()
    squares, vectors = spectrum_of(x)
    root = power_of(squares, vectors, -0.25 if wide else 0.25)
    return (root, x) if wide else (root,), *_sums(squares, 0.5)


def moment_sums(moment: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """The sums of :func:`power_sums`, from a second moment X^T X (D, D)."""
    if not _by_products(moment):
        return _sums(without_rounding(eigenvalues(on_double(moment))), power)
    return moment_root(moment, power)[1:]


def moment_root(moment: Tensor, power: float) -> tuple[Tensor, Tensor, Tensor]:
    """A factor of a power of a second moment.

    Args:
        moment: (D, D), symmetric, positive semi-definite, with eigenvalues s ** 2.
        power: 0.5 or 1.

    Returns:
        A (D, D) with ``A^T A = moment ** power``, and the 0-d sums of s ** power and s ** (2 power).

    Raises:
        torch.linalg.LinAlgError: on the CPU, if the moment is not finite. Elsewhere the result is NaN.
    """
    if not _by_products(moment):
        squares, vectors = eigen(on_double(moment))
        return power_of(squares, vectors, power / 2), *_sums(squares, power)
    root, nuclear_norm = square_root(moment)
    if power == 1:
        return root, nuclear_norm, moment.diagonal().sum()
    # The null directions of a root are only exact to the root of eps: in float64 the ridge would be too low.
    fourth_root, root_sum = square_root(root.float())
    return fourth_root, root_sum, nuclear_norm


def exact_svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (B, R), s (R,) and V^T (R, D) of x (B, D), in float64; if B > D, V (D, R) in place of U.

    Raises:
        torch.linalg.LinAlgError: on the CPU, if x is not finite.
    """
    x = on_double(x)
    if x.device.type == "cpu" and not largest(x).isfinite():
        raise torch.linalg.LinAlgError("the features are not finite: they have no singular values")
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    return (left if x.shape[0] <= x.shape[1] else right.T), values, right


def moment_spectrum(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values (D,), largest first, and right singular vectors (D, D), from a second moment X^T X."""
    squares, vectors = eigen(on_double(moment))
    return squares.flip(0).sqrt(), vectors.flip(1).T


def _by_products(x: Tensor) -> bool:
    return x.device.type != "cpu"


def _sums(squares: Tensor, power: float) -> tuple[Tensor, Tensor]:
    return squares.pow(power / 2).sum(), squares.pow(power).sum()
