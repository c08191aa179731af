"""Eigenvalues and eigenvectors of Gram matrices by LAPACK: the route of the CPU.

The Gram matrix of X = U diag(s) V^T has the eigenvalues s^2. In float32 they are off by about eps of the
largest, which hides singular values below 3e-4 of the largest. So Gram matrices are float64, except in
:func:`spectrum_of`, where float32 takes half the time: it decomposes weak directions a second time, alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Eigenvalues below this many eps of the largest are rounding errors: for R = 1024, null directions reached up
# to 9 eps. In float64 that hides singular values below 8e-8 of the largest.
_ROUNDING = 32
_STRIPES = 4
_ONE_STRIPE = 128  # rows up to which stripes cost more than they save

# Of float32: directions whose eigenvalues are below this share of the largest, and singular values in eps of
# the largest that are rounding errors.
_WEAK = 1e-4
_RESOLUTION = 8
_FEW = 96  # float32 saves nothing for up to this many


def spectrum_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values and vectors of x (B, D): eigenvalues of its smaller Gram matrix.

    Args:
        x: float32 or float64, of a scale whose squares neither overflow nor vanish.

    Returns:
        Squares (R,) in float64, in no order, with rounding errors set to 0; and the eigenvectors, the columns
        of a matrix (R, R), in the dtype of x.

    Raises:
        torch.linalg.LinAlgError: if x is not finite, or the decomposition does not converge.
    """
    if x.dtype == torch.float32 and min(x.shape) > _FEW:
        rows = x if x.shape[0] <= x.shape[1] else x.T
        return _with_weak_directions(rows, *torch.linalg.eigh(_finite(_lower_gram(rows))))
    squares, vectors = eigen(smaller_gram(x))
    return squares, vectors.to(x)


def _with_weak_directions(rows: Tensor, squares: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The spectrum of rows (R, C) from that of their Gram matrix in float32, ascending.

    What rows hold in weak directions is free of the rounding errors of the strong ones, and has a small Gram
    matrix, (K, K) for K directions.
    """
    largest = squares[-1]
    weak = int((squares < _WEAK * largest).sum())
    squares = squares.double()
    if not weak:
        return squares, vectors
    inner, turn = torch.linalg.eigh(smaller_gram(vectors[:, :weak].T @ rows))
    floor = (_RESOLUTION * torch.finfo(rows.dtype).eps) ** 2 * largest
    squares[:weak] = torch.where(inner > floor, inner, 0)
    return squares, torch.cat([vectors[:, :weak] @ turn.to(rows), vectors[:, weak:]], dim=1)


def eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, with rounding errors set to 0, and eigenvectors (R, R)."""
    eigenvalues, eigenvectors = torch.linalg.eigh(_finite(gram))
    return without_rounding(eigenvalues), eigenvectors


def eigenvalues(gram: Tensor) -> Tensor:
    """Eigenvalues, ascending."""
    return torch.linalg.eigvalsh(_finite(gram))


def smaller_gram(x: Tensor) -> Tensor:
    """``X X^T`` or ``X^T X``, whichever is smaller, in float64: the lower triangle, all that eigh reads."""
    return _lower_gram(on_double(x if x.shape[0] <= x.shape[1] else x.T))


def _lower_gram(rows: Tensor) -> Tensor:
    """The product in stripes up to the diagonal, in 5/8 of its time; what is above them is not valid."""
    if len(rows) <= _ONE_STRIPE:
        return rows @ rows.T
    gram = rows.new_zeros(len(rows), len(rows))
    height = -(-len(rows) // _STRIPES)
    for top in range(0, len(rows), height):
        bottom = top + height
        gram[top:bottom, :bottom] = rows[top:bottom] @ rows[:bottom].T
    return gram


def on_double(x: Tensor) -> Tensor:
    """The matrix in float64, on the CPU if the device lacks float64 (MPS, which lacks eigh too)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def _finite(gram: Tensor) -> Tensor:
    """Raise ``LinAlgError`` for a matrix that LAPACK might never finish."""
    if not gram.diagonal().sum().isfinite():  # a sum of squares: nothing cancels
        raise torch.linalg.LinAlgError("the features are not finite: they have no singular values")
    return gram


def without_rounding(eigenvalues: Tensor) -> Tensor:
    """Ascending eigenvalues, with rounding errors set to 0."""
    floor = eigenvalues[-1] * _ROUNDING * torch.finfo(eigenvalues.dtype).eps
    return torch.where(eigenvalues > floor, eigenvalues, 0)


def powers(squares: Tensor, power: float) -> Tensor:
    """``squares ** power``, where 0 stays 0: a direction without energy gets no noise."""
    return torch.where(squares > 0, squares.pow(power), 0)


def power_of(squares: Tensor, vectors: Tensor, power: float) -> Tensor:
    """The symmetric power of a matrix with these eigenvalues and eigenvectors.

    ``diag(squares ** power) V^T`` has the same covariance and saves a product. But the signs of eigenvectors
    depend on rounding: after a change of 1e-16, the same random numbers would give different noise.
    """
    return (vectors * powers(squares, power).to(vectors)) @ vectors.T
