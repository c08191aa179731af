"""How much of each direction of the features is left under noise, for each scaling law."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fanoise_lightning.figures.style import colours, tidy
from fanoise_lightning.spectrum import decompose
from fanoise_lightning.theory import predicted_overlaps

__all__ = ["overlaps"]


def overlaps(features: Tensor, noise: Mapping[str, Tensor]) -> tuple[Figure, dict[str, Any]]:
    """Draw ``|<v_i, v~_i>|``, the cosine of each right singular vector with that of the noisy features.

    1 is a direction that noise leaves alone, and 0 one that it replaces. The dotted curve is the
    prediction for uniform noise, see :func:`~fanoise_lightning.theory.predicted_overlaps`. It is for
    singular values that are far apart: directions whose values are close turn into each other, and fall
    below the curve.

    Args:
        features: (B, D) finite features.
        noise: law to its noise (K, B, D), K draws, over which the cosines are averaged. For a comparison
            of shapes, draw it with ``energy="constant"``.

    Returns:
        The figure, and its numbers: the singular values (R,), and for each law the mean cosines (R,) and
        the root mean square of the noise; for uniform noise also the prediction.

    Raises:
        ValueError: if there is no law, or the noise has another shape.

    Example:
        >>> features = torch.diag(torch.tensor([4.0, 3.0]))
        >>> overlaps(features, {"uniform": torch.zeros(1, 2, 2)})[1]["laws"]["uniform"]["overlaps"]
        [1.0, 1.0]
    """
    if not noise:
        raise ValueError("there is no noise to draw: pass that of one law at least")
    rows, dim = features.shape
    for law, draws in noise.items():
        if draws.shape[1:] != features.shape or not len(draws):
            shapes = f"{tuple(draws.shape)}, the features are {tuple(features.shape)}"
            raise ValueError(
                f"the noise of {law!r} must be (K, B, D), K draws for the features; got {shapes}"
            )
    clean = features.detach().double().cpu()
    values, vectors = decompose(clean)
    laws: dict[str, dict[str, Any]] = {}
    for law, draws in noise.items():
        cosines = [_cosines(vectors, clean + draw.detach().double().cpu()) for draw in draws]
        rms = draws.double().square().mean().sqrt().item()
        laws[law] = {"overlaps": _rounded(torch.stack(cosines).mean(dim=0)), "noise_rms": rms}
        if law == "uniform":
            laws[law]["predicted"] = _rounded(predicted_overlaps(values, rms, rows, dim))
    draws_of_each = min(len(draws) for draws in noise.values())
    return _draw(laws, rows, dim, draws_of_each), {"values": _rounded(values), "laws": laws}


def _cosines(vectors: Tensor, noisy: Tensor) -> Tensor:
    return (vectors * decompose(noisy)[1]).sum(dim=1).abs()


def _draw(laws: Mapping[str, Mapping[str, Any]], rows: int, dim: int, draws: int) -> Figure:
    figure = Figure(figsize=(6.4, 4), layout="constrained", dpi=110)
    ax = figure.subplots()
    for law, colour in colours([*laws]).items():
        known = laws[law]
        places = range(1, len(known["overlaps"]) + 1)
        ax.plot(places, known["overlaps"], color=colour, lw=1.6, label=law)
        if "predicted" in known:
            ax.plot(
                places,
                known["predicted"],
                color="#000000",
                lw=1.2,
                ls=":",
                label="uniform, predicted if far apart",
            )
    ax.set_xscale("log")
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("direction i, strongest first")
    ax.set_ylabel(r"$|\langle v_i, \tilde v_i \rangle|$")
    level = " and ".join(sorted({f"{known['noise_rms'] * dim**0.5:.2g}" for known in laws.values()}))
    ax.set_title(
        f"What noise leaves of each direction: {rows} × {dim}, noise row {level}, mean of {draws}",
        fontsize=10,
    )
    tidy(ax)
    ax.legend(frameon=False, fontsize=9)
    return figure


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
