"""The spectrum of a feature matrix: singular values, right singular vectors, and roots of its Gram matrix.

Everything comes from the smaller Gram matrix, ``X X^T`` (B, B) or ``X^T X`` (D, D), whose eigenvalues are the
squared singular values; an exact SVD stands beside it as the reference. Squaring loses singular values under
about ``sqrt(eps)`` of the largest, 1e-3 in float32: noise in such directions is weaker than the law says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

__all__ = ["decompose", "effective_rank", "singular_values"]

# Enough for Newton-Schulz to carry eigenvalues from the ridge to 1: a step multiplies by at most 1.5 ** 2.
_NEWTON_SCHULZ_STEPS = 20
_RIDGE = 1e-6


def singular_values(features: Tensor, method: Literal["gram", "svd"] = "gram") -> Tensor:
    """Singular values, largest first.

    Args:
        features: (B, D), any floating dtype; worked on in float32 (float64 stays).
        method: ``"gram"`` by the eigenvalues of the smaller Gram matrix, ``"svd"`` exactly.

    Returns:
        (R,), R = min(B, D), float32 or float64.

    Raises:
        ValueError: if ``features`` is not a non-empty floating point matrix, or the method is unknown.
        torch.linalg.LinAlgError: if the decomposition does not converge (non-finite features).

    Example:
        >>> singular_values(torch.diag(torch.tensor([3.0, 4.0])))
        tensor([4., 3.])
    """
    _check_method(method)
    with full_precision(features):
        x = as_matrix(features)
        if method == "svd":
            return torch.linalg.svdvals(x)
        return torch.linalg.eigvalsh(smaller_gram(x)).flip(0).clamp_min(0).sqrt()


def decompose(features: Tensor, method: Literal["gram", "svd"] = "gram") -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors, strongest direction first.

    Args:
        features: (B, D), any floating dtype; worked on in float32 (float64 stays).
        method: ``"gram"`` by the eigenvectors of the smaller Gram matrix, ``"svd"`` exactly. By the Gram
            route with B <= D, directions weaker than about sqrt(eps) of the strongest have shorter rows.

    Returns:
        values (R,) and vectors (R, D) with orthonormal rows, R = min(B, D).

    Raises:
        ValueError: if ``features`` is not a non-empty floating point matrix, or the method is unknown.
        torch.linalg.LinAlgError: if the decomposition does not converge (non-finite features).

    Example:
        >>> values, vectors = decompose(torch.diag(torch.tensor([3.0, 4.0])))
        >>> values, vectors.abs()
        (tensor([4., 3.]), tensor([[0., 1.],
                [1., 0.]]))
    """
    _check_method(method)
    with full_precision(features):
        x = as_matrix(features)
        if method == "svd":
            _, values, vectors = torch.linalg.svd(x, full_matrices=False)
            return values, vectors
        eigenvalues, eigenvectors = torch.linalg.eigh(smaller_gram(x))
        values = eigenvalues.flip(0).clamp_min(0).sqrt()
        eigenvectors = eigenvectors.flip(1)
        if x.shape[0] > x.shape[1]:
            return values, eigenvectors.T
        return values, (eigenvectors * _power(values.square(), -0.5)).T @ x


def effective_rank(values: Tensor) -> Tensor:
    """Effective rank: the exponential of the entropy of the normalised singular values.

    Between 1 (one direction) and R (all directions equally strong). Roy and Vetterli, "The effective rank: a
    measure of effective dimensionality", EUSIPCO 2007.

    Args:
        values: (R,) singular values, non-negative.

    Returns:
        A 0-d tensor on the device of ``values``; NaN if all values are zero.

    Example:
        >>> effective_rank(torch.ones(8))
        tensor(8.)
    """
    return torch.special.entr(values / values.sum()).sum().exp()


@contextmanager
def full_precision(features: Tensor) -> Iterator[None]:
    """No gradient, no autocast, no TF32: squared singular values need every bit of float32."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def as_matrix(features: Tensor) -> Tensor:
    """Detached (B, D) features in float32, or float64 if they came so: eigh knows no half precision."""
    if features.ndim != 2 or features.numel() == 0 or not features.is_floating_point():
        raise ValueError(
            f"`features` must be a non-empty floating point matrix (B, D), got {features.dtype} of shape "
            f"{tuple(features.shape)}"
        )
    features = features.detach()
    return features if features.dtype == torch.float64 else features.float()


def smaller_gram(x: Tensor) -> Tensor:
    """``X X^T`` or ``X^T X``, whichever is smaller: (R, R), R = min(B, D)."""
    return x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x


def nuclear_norm(x: Tensor) -> Tensor:
    """The sum of the singular values of a (B, D) matrix, 0-d, without eigenvectors."""
    gram = smaller_gram(x)
    if gram.is_cuda:
        _, inverse_root = _newton_schulz(gram)
        return (inverse_root * gram).sum()
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().sum()


def gram_root(gram: Tensor, exponent: float, power: float) -> tuple[Tensor, Tensor]:
    """A factor of a power of a Gram matrix: what white noise is multiplied by to be shaped.

    On CUDA by a coupled Newton-Schulz iteration (Higham, "Functions of Matrices", 2008, section 6.7): matrix
    products alone, where ``eigh`` would make the host wait for the device.

    Args:
        gram: (R, R), symmetric, positive semi-definite, with eigenvalues s**2.
        exponent: the power of the Gram matrix to factor: -0.5, 0.5 or 1.
        power: the power of the singular values to sum: 0.5 or 1.

    Returns:
        A (R, R) with A^T A = gram ** exponent, and the 0-d sum of s ** power; directions weaker than about
        1e-3 of the strongest are damped.
    """
    if gram.is_cuda:
        return _root_by_products(gram, exponent, power)
    return _root_by_eigh(gram, exponent, power)


def _root_by_eigh(gram: Tensor, exponent: float, power: float) -> tuple[Tensor, Tensor]:
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)
    factor = (eigenvectors * _power(eigenvalues, exponent / 2)).T
    return factor, _power(eigenvalues, power / 2).sum()


def _root_by_products(gram: Tensor, exponent: float, power: float) -> tuple[Tensor, Tensor]:
    root, inverse_root = _newton_schulz(gram)  # gram ** 0.5, gram ** -0.5
    fourth_root, inverse_fourth_root = _newton_schulz(root)
    factor = {-0.5: inverse_fourth_root, 0.5: fourth_root, 1.0: root}[exponent]
    # tr(G^(p/2)) as tr(G^(p/2 - 1) G): in G^(p/2) itself the ridge would count for every null direction.
    weight = inverse_root if power == 1.0 else inverse_root @ inverse_fourth_root
    return factor, (weight * gram).sum()


def _newton_schulz(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of a positive definite matrix, without a decomposition."""
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    norm = gram.norm()
    root, inverse = gram / norm + _RIDGE * identity, identity
    for _ in range(_NEWTON_SCHULZ_STEPS):
        step = 1.5 * identity - 0.5 * inverse @ root
        root, inverse = root @ step, step @ inverse
    return root * norm.sqrt(), inverse * norm.rsqrt()


def _power(eigenvalues: Tensor, power: float) -> Tensor:
    """``eigenvalues ** power``, held down where rounding hides them: below about 4 eps of the largest.

    There a negative power stops growing, and a positive one falls off linearly: a direction of no energy gets
    a factor of no effect, a weak one is damped and not lost.
    """
    floor = eigenvalues.amax() * 4 * torch.finfo(eigenvalues.dtype).eps
    held = eigenvalues.clamp(min=floor)
    return held.pow(power) if power < 0 else eigenvalues.clamp_min(0) * held.pow(power - 1)


def _check_method(method: str) -> None:
    if method not in ("gram", "svd"):
        raise ValueError(f"`method` must be 'gram' or 'svd', got {method!r}")
