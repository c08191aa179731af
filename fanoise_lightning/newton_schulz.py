"""Orthogonal factors and square roots of matrices by scaled Newton-Schulz iterations.

They take only matrix products, and nothing here waits for a value on the device. See Higham, "Functions of
Matrices", 2008, chapters 6 and 8.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

_RESOLUTION = 8  # in eps of the Frobenius norm: weaker directions are left to rounding

# What lifts the null directions of a root above zero, relative to the Frobenius norm. Rounding gave them
# eigenvalues down to -1.3 eps, and in second moments, whose sums are long, to -400 eps of float64, which can
# afford more.
_RIDGE = {torch.float32: 4 * torch.finfo(torch.float32).eps, torch.float64: 2.0**-40}


def orthogonal_factor(x: Tensor) -> Tensor:
    """The orthogonal factor ``U V^T`` of x = U diag(s) V^T, (R, C) with R <= C.

    Directions weaker than 8 eps of ``x.norm()`` come out shorter than 1, and null directions as rounding
    noise that has no effect on ``U V^T x^T``. If x is 0 or not finite, the result is NaN.
    """
    resolution = _RESOLUTION * torch.finfo(x.dtype).eps
    y = x / x.norm()
    for linear, cubic in _steps(resolution, resolution):
        y = torch.addmm(y, y @ y.T, y, beta=linear, alpha=-cubic)
    return y


def square_root(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of a positive semi-definite matrix (R, R), and its trace, by a coupled iteration.

    Rounding gives null directions eigenvalues of either sign, and the iteration would blow up a negative one.
    A ridge lifts them all, and the results are corrected for it to first order. Products of rows that are all
    alike are long sums of equal terms, and worse: they are up to 20 times as far off symmetry as they are off
    the positive matrices, which is up to 16 eps for others.
    """
    skew, matrix = (matrix - matrix.T) / 2, (matrix + matrix.T) / 2
    norm, least = matrix.norm(), _RIDGE[matrix.dtype]
    ridge = (skew.norm() / norm / 4).clamp_min(least)
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    root, inverse = matrix / norm + ridge * identity, identity
    for linear, cubic in _steps((2 * least) ** 0.5, _RESOLUTION * torch.finfo(matrix.dtype).eps):
        step = torch.addmm(identity, inverse, root, beta=linear, alpha=-cubic)
        root, inverse = root @ step, step @ inverse
    # With m' = m + ridge: m^(1/2) = m m'^(-1/2) (1 + ridge/2 m'^-1) + O(ridge^2). The factor m keeps the many
    # null directions from adding up.
    without = root - ridge * inverse  # m m'^(-1/2)
    root = torch.addmm(without, without, inverse @ inverse * (ridge / 2)) * norm.sqrt()
    return root, root.diagonal().sum()


@cache
def _steps(low: float, tolerance: float) -> tuple[tuple[float, float], ...]:
    """Coefficients (a, b) of steps a y - b y^3 that carry all of [low, 1] to 1 - tolerance or closer.

    A step is 1.5 z - 0.5 z^3 of z = scale * y, with the scale at which `low` grows most, within the bound of
    Chen and Chow, "A stable scaling of Newton-Schulz for improving the sign function computation of a
    Hermitian matrix", 2014, which keeps a value of 1 from falling below 0.1.
    """
    steps = []
    while 1 - low > tolerance:
        scale = min(math.sqrt(3 / (1 + low + low * low)), 1.6977)
        linear, cubic = 1.5 * scale, 0.5 * scale**3
        steps.append((linear, cubic))
        low = linear * low - cubic * low**3
    return tuple(steps)
