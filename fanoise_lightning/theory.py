"""What theory predicts about noisy features and the gradient of InfoNCE, in closed form.

Isotropic noise of standard deviation delta in each entry of features X (B, D) has a threshold,
delta (B D)^(1/4): directions whose singular value is above it stay visible in the noisy features, those
below it are lost [0]. The formulas are limits of large matrices with few strong directions. Shaped noise
has no common threshold; of the functions here, :func:`noise_energy` and :func:`weyl_bound` cover it.

References:
    [0] Benaych-Georges and Nadakuditi, "The singular values and vectors of low rank perturbations of
        large rectangular random matrices", Journal of Multivariate Analysis 111, 2012.
    [1] "FANoise: Singular Value-Adaptive Noise Modulation for Robust Multimodal Representation
        Learning", AAAI 2026, arXiv 2511.20997.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fanoise_lightning._checks import check_at_least, check_positive
from fanoise_lightning.laws import Law, Scaling, check_scaling, law_weights

__all__ = [
    "expected_query_gradient",
    "noise_energy",
    "predicted_overlaps",
    "predicted_singular_values",
    "weyl_bound",
]

_WEIGHTS: dict[str, Law] = {"linear": torch.clone, "sublinear": torch.sqrt}


def predicted_singular_values(values: Tensor, noise_rms: float, batch_size: int, dim: int) -> Tensor:
    """The singular values of X + E, where E is i.i.d. noise.

    Above the threshold, s~^2 = (s^2 + delta^2 B) (s^2 + delta^2 D) / s^2. Below it, noise alone decides:
    the largest noisy values are at the edge of Marchenko and Pastur, delta (sqrt(B) + sqrt(D)).

    Args:
        values: (K,) singular values of X, of which those that are not 0 are few beside B and D.
        noise_rms: delta, the standard deviation of an entry of E.
        batch_size: B, the number of rows.
        dim: D, the number of columns.

    Returns:
        (K,), in the order and of the dtype of ``values``.

    Raises:
        ValueError: if ``values`` are not K <= min(B, D) finite numbers of at least 0, or another
            argument is negative or not finite.

    Source: [0].

    Example:
        >>> predicted_singular_values(torch.tensor([40.0, 20.0, 1.0]), 1.0, batch_size=25, dim=100)
        tensor([41.5519, 23.0489, 15.0000])
    """
    _check(values, batch_size, dim, noise_rms)
    if noise_rms == 0:
        return values.clone()
    least = _threshold(noise_rms, batch_size, dim) ** 2  # at which the formula is the edge
    square = values.double().square().clamp_min(least)
    noise = noise_rms**2
    return ((square + noise * batch_size) * (square + noise * dim) / square).sqrt().to(values.dtype)


def predicted_overlaps(values: Tensor, noise_rms: float, batch_size: int, dim: int) -> Tensor:
    """How much of each right singular vector of X is left in that of X + E: the cosine |<v_i, v~_i>|.

    Its square is (s^4 - delta^4 B D) / (s^2 (s^2 + delta^2 D)) above the threshold, and 0 below it.

    Args:
        values: (K,) singular values of X, of which those that are not 0 are few beside B and D. Equal
            values share their directions; the cosine is then that of v_i with the subspace.
        noise_rms: delta, the standard deviation of an entry of E.
        batch_size: B, the number of rows.
        dim: D, the number of columns.

    Returns:
        (K,) between 0 and 1, in the order and of the dtype of ``values``.

    Raises:
        ValueError: as :func:`predicted_singular_values`.

    Source: [0].

    Example:
        >>> predicted_overlaps(torch.tensor([40.0, 20.0, 1.0]), 1.0, batch_size=25, dim=100)
        tensor([0.9697, 0.8874, 0.0000])
    """
    _check(values, batch_size, dim, noise_rms)
    threshold = _threshold(noise_rms, batch_size, dim)
    square, least = values.double().square(), threshold**2
    kept = (square - least) * (square + least) / (square * (square + noise_rms**2 * dim))
    return torch.where(values > threshold, kept.sqrt(), 0).to(values.dtype)


def noise_energy(values: Tensor, scaling: Scaling, batch_size: int, dim: int) -> float:
    """The energy of a noise row, E||noise row||^2 / alpha^2, under ``energy="paper"``.

    It is 1 for uniform noise, and (R / D) mean(w^2) / mean(w)^2 if w are the weights of the directions.
    ``energy="constant"`` is the same noise divided by the root of this number.

    Args:
        values: (R,) singular values of the features, R = min(B, D), zeros included.
        scaling: the scaling law, as in :func:`~fanoise_lightning.feature_noise`.
        batch_size: B, the number of rows.
        dim: D, the number of columns.

    Raises:
        ValueError: if ``values`` are not R finite numbers of at least 0, if all weights are 0, or if the
            scaling law is unknown.

    Source: [1].

    Example:
        >>> noise_energy(torch.tensor([3.0, 1.0]), "linear", batch_size=2, dim=4)  # weights 1.5, 0.5
        0.625
    """
    if scaling == "uniform":  # in all D directions, not only in the R of the features
        _check_all(values, scaling, batch_size, dim)
        return 1.0
    weights = _weights(values, scaling, batch_size, dim)
    return weights.square().sum().item() / dim


def weyl_bound(values: Tensor, scaling: Scaling, batch_size: int, dim: int) -> float:
    """How far noise moves a singular value at most, in expectation: a bound of E||E||_2 / alpha.

    By Weyl's inequality no singular value moves by more than ||E||_2, the largest one of the noise E.
    For Gaussian rows with standard deviations alpha S / sqrt(D) along the directions,
    E||E||_2 <= alpha (sqrt(B) max(S) + sqrt(sum S^2)) / sqrt(D) (Chevet's inequality with Gordon's
    constant). For uniform noise that is the edge of Marchenko and Pastur.

    Args:
        values: (R,) singular values of the features, R = min(B, D), zeros included.
        scaling: the scaling law, under ``energy="paper"``; for ``energy="constant"``, divide by the root
            of :func:`noise_energy`.
        batch_size: B, the number of rows.
        dim: D, the number of columns.

    Raises:
        ValueError: as :func:`noise_energy`.

    Source: Gordon, "Some inequalities for Gaussian processes and applications", Israel Journal of
    Mathematics 50, 1985.

    Example:
        >>> weyl_bound(torch.ones(4), "uniform", batch_size=4, dim=16)  # (sqrt(4) + sqrt(16)) / sqrt(16)
        1.5
    """
    if scaling == "uniform":
        _check_all(values, scaling, batch_size, dim)
        return math.sqrt(batch_size / dim) + 1.0
    weights = _weights(values, scaling, batch_size, dim)
    return (math.sqrt(batch_size) * weights.max().item() + weights.norm().item()) / math.sqrt(dim)


def expected_query_gradient(
    query: Tensor, keys: Tensor, positive: int, temperature: float, noise_std: float
) -> Tensor:
    """The mean gradient of InfoNCE with respect to a query whose keys have noise, to second order.

    With p the softmax of q k_j / tau, and noise N(0, delta^2 I) on each key, the positive included,

        E grad = -(1/tau) (k_l - sum_j E[p_j] k_j - (delta^2/tau) sum_j p_j (1 - p_j) q) + O(sigma^4),
        E[p_j] = p_j + sigma^2 p_j (sum_i p_i^2 - p_j) + O(sigma^4),    sigma = delta ||q|| / tau.

    The noise pulls the query towards 0, and moves weight from the likeliest keys to the others. The
    paper [1] has the limit of a diffuse p, in which E[p_j] = p_j and sum_j p_j (1 - p_j) = 1:
    -(1/tau) (k_l - sum_j p_j k_j - (delta^2/tau) q). Both need sigma, the noise of a logit, below 1.

    Args:
        query: (D,) q.
        keys: (K, D) the clean keys.
        positive: l, the row of the key that the query should find.
        temperature: tau.
        noise_std: delta, the standard deviation of an entry of the noise; for uniform noise,
            alpha / sqrt(D).

    Returns:
        (D,) the gradient; without noise it is exact.

    Raises:
        ValueError: if the shapes do not match, there is no such row, or a number is negative or not
            finite.

    Source: [1] for a diffuse p; the other terms follow from Stein's lemma and a Taylor series in delta.

    Example:
        >>> query, keys = torch.tensor([1.0, 0.0]), torch.eye(2)
        >>> expected_query_gradient(query, keys, 0, temperature=1.0, noise_std=0.0)
        tensor([-0.2689,  0.2689])
    """
    if query.ndim != 1 or keys.ndim != 2 or keys.shape[1] != len(query) or not len(keys):
        shapes = f"{tuple(query.shape)} and {tuple(keys.shape)}"
        raise ValueError(f"`query` and `keys` must be of shapes (D,) and (K, D), got {shapes}")
    if not 0 <= positive < len(keys):
        raise ValueError(f"`positive` must be a row of the {len(keys)} keys, from 0, got {positive}")
    check_positive("temperature", temperature)
    _check_noise("noise_std", noise_std)
    p = (keys @ query / temperature).softmax(0)
    sigma_square = (noise_std / temperature) ** 2 * query.square().sum()
    expected = p + sigma_square * p * (p.square().sum() - p)
    pull = noise_std**2 / temperature * (p * (1 - p)).sum()
    return (expected @ keys - keys[positive] + pull * query) / temperature


def _threshold(noise_rms: float, batch_size: int, dim: int) -> float:
    return noise_rms * (batch_size * dim) ** 0.25


def _weights(values: Tensor, scaling: Scaling, batch_size: int, dim: int) -> Tensor:
    """S (R,) in float64, of mean 1."""
    _check_all(values, scaling, batch_size, dim)
    law = _WEIGHTS[scaling] if isinstance(scaling, str) else scaling
    weights = law_weights(law, values.double())
    return weights / weights.mean()


def _check_all(values: Tensor, scaling: Scaling, batch_size: int, dim: int) -> None:
    check_scaling(scaling)
    _check(values, batch_size, dim)
    if len(values) != min(batch_size, dim):
        raise ValueError(
            f"`values` must be all min(B, D) = {min(batch_size, dim)} singular values, since weights "
            f"are relative to their mean, got {len(values)}: add the zeros"
        )


def _check(values: Tensor, batch_size: int, dim: int, noise_rms: float = 0.0) -> None:
    check_at_least("batch_size", batch_size, 1)
    check_at_least("dim", dim, 1)
    _check_noise("noise_rms", noise_rms)
    if values.ndim != 1 or not values.is_floating_point() or not len(values):
        raise ValueError(
            f"`values` must be singular values (K,), got {values.dtype} of shape {tuple(values.shape)}"
        )
    if len(values) > min(batch_size, dim):
        raise ValueError(
            f"features ({batch_size}, {dim}) have {min(batch_size, dim)} singular values, got "
            f"{len(values)}: check `batch_size` and `dim`"
        )
    wrong = values[~(values.isfinite() & (values >= 0))]
    if len(wrong):
        raise ValueError(f"`values` must be finite and at least 0, got {wrong[0]:g}")


def _check_noise(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` must be finite and at least 0, got {value}")
