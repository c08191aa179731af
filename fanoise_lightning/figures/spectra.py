"""Singular values of features, clean and noisy, beside those of the noise alone: what noise buries.

Weyl: noise moves no singular value by more than its own largest one. For i.i.d. noise that is the
Marchenko-Pastur edge, so clean directions well above the edge survive; those below half of it are lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from fanoise_lightning.figures.style import tidy
from fanoise_lightning.spectrum import singular_values
from fanoise_lightning.theory import predicted_singular_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SideSpectrum", "marchenko_pastur_edge", "noise_spectrum", "side_spectrum", "spectrum_figure"]

# Okabe and Ito: distinct for the colour-blind, and in grey.
_CLEAN, _NOISY, _NOISE, _EDGE = "#0072B2", "#E69F00", "#888888", "#000000"


class SideSpectrum(TypedDict, total=False):
    """Singular values of one side of a batch, largest first; without noise only the first three entries."""

    batch_size: int
    dim: int
    clean: list[float]
    noisy: list[float]
    noise: list[float]
    noise_rms: float


def marchenko_pastur_edge(noise_rms: float, batch_size: int, dim: int) -> float:
    """The largest singular value of a (B, D) matrix of i.i.d. noise, in the limit of a large matrix.

    The eigenvalues of ``N^T N / B``, where N has i.i.d. entries of variance delta^2, fill the law of
    Marchenko and Pastur (1967) between ``delta^2 (1 - sqrt(D / B))^2`` and ``delta^2 (1 + sqrt(D / B))^2``.
    Times B and rooted, the upper end is ``delta (sqrt(B) + sqrt(D))``. The largest singular value converges
    to it (Geman, Annals of Probability 8, 1980), and for Gaussian entries its expectation is never above it
    (Davidson and Szarek, "Local operator theory, random matrices and Banach spaces", 2001, theorem II.13).

    Args:
        noise_rms: delta, the root mean square of an entry.
        batch_size: B, the number of rows.
        dim: D, the number of columns.

    Example:
        >>> marchenko_pastur_edge(0.5, batch_size=64, dim=256)
        12.0
    """
    return noise_rms * (math.sqrt(batch_size) + math.sqrt(dim))


def side_spectrum(clean: Tensor, noisy: Tensor | None = None) -> SideSpectrum:
    """Singular values of features before and after noise, and of the noise alone.

    Args:
        clean: (B, D) finite features.
        noisy: (B, D) the same with noise; ``None``, or equal to ``clean``, for none.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> side_spectrum(torch.diag(torch.tensor([3.0, 4.0])))
        {'batch_size': 2, 'dim': 2, 'clean': [4.0, 3.0]}
    """
    clean = _exact(clean)
    spectrum = SideSpectrum(batch_size=clean.shape[0], dim=clean.shape[1], clean=_values(clean))
    if noisy is None:
        return spectrum
    if noisy.shape != clean.shape:
        shapes = f"{tuple(clean.shape)} and {tuple(noisy.shape)}"
        raise ValueError(f"`clean` and `noisy` must have one shape (B, D), got {shapes}")
    noise = _exact(noisy) - clean
    if noise.any():
        spectrum["noisy"] = _values(_exact(noisy))
        spectrum["noise"] = _values(noise)
        spectrum["noise_rms"] = noise.square().mean().sqrt().item()
    return spectrum


def noise_spectrum(spectra: Sequence[Mapping[str, Any]]) -> tuple[Figure, dict[str, Any]]:
    """The figure of :func:`spectrum_figure`, with its numbers: the last spectra, by side.

    Returns:
        The figure, and for each side its :class:`SideSpectrum`; with noise also ``"edge"`` and
        ``"predicted"``, the noisy values that isotropic noise of that energy would lead to, for the clean
        values that stay visible in it.

    Raises:
        ValueError: if there is no record.

    Example:
        >>> features = torch.diag(torch.tensor([3.0, 4.0]))
        >>> record = {"step": 0, "sides": {"query": side_spectrum(features, features + 0.1)}}
        >>> round(noise_spectrum([record])[1]["query"]["edge"], 3)
        0.283
    """
    figure = spectrum_figure(spectra)
    numbers = {}
    for side, spectrum in spectra[-1]["sides"].items():
        numbers[side] = dict(spectrum)
        if "noise" in spectrum:
            edge = marchenko_pastur_edge(spectrum["noise_rms"], spectrum["batch_size"], spectrum["dim"])
            numbers[side] |= {"edge": edge, "predicted": _visible(spectrum)}
    return figure, numbers


def spectrum_figure(spectra: Sequence[Mapping[str, Any]]) -> Figure:
    """The last spectra, one panel a side: clean, noisy and the noise alone, on a logarithmic scale.

    The dashed line is the Marchenko-Pastur edge of isotropic noise with the energy of the noise there was,
    the dotted one what that noise would make of the clean values that it does not bury. The thin line is the
    clean spectrum of the first record, to see what training did to it.

    Args:
        spectra: records ``{"step": int, "sides": {"query": SideSpectrum, "target": SideSpectrum}}`` in
            order, as in the file of :class:`~fanoise_lightning.callbacks.SpectrumMonitor`.

    Raises:
        ValueError: if there is no record.
    """
    from matplotlib.figure import Figure

    if not spectra:
        raise ValueError("there are no spectra to draw: was a finite batch of the training ever monitored?")
    first, last = spectra[0], spectra[-1]
    sides = last["sides"]
    figure = Figure(figsize=(4.6 * len(sides) + 0.4, 4.4), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(sides), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for ax, (side, spectrum) in zip(axes, sides.items()):
        if last["step"] > first["step"] and side in first["sides"]:
            label = f"clean, step {first['step']}"
            ax.plot(*_curve(first["sides"][side]["clean"]), color=_CLEAN, lw=0.8, alpha=0.6, label=label)
        _draw_side(ax, spectrum)
        ax.set_title(
            f"{side}, step {last['step']}: {spectrum['batch_size']} × {spectrum['dim']}", fontsize=11
        )
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels())}
    axes[0].set_ylabel("singular value")
    largest = max(spectrum["clean"][0] for spectrum in sides.values())
    axes[0].set_ylim(bottom=1e-4 * largest)  # below it is little but rounding
    style = {"ncols": 1 + len(sides), "frameon": False, "fontsize": 9}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", **style)
    return figure


def _draw_side(ax: Axes, spectrum: SideSpectrum) -> None:
    ax.plot(*_curve(spectrum["clean"]), color=_CLEAN, lw=2, label="clean")
    if "noise" in spectrum:
        edge = marchenko_pastur_edge(spectrum["noise_rms"], spectrum["batch_size"], spectrum["dim"])
        above = sum(value > edge for value in spectrum["clean"])
        ax.plot(*_curve(spectrum["noisy"]), color=_NOISY, lw=2, label="noisy")
        ax.plot(*_curve(spectrum["noise"]), color=_NOISE, lw=2, label="noise alone")
        ax.axhline(edge, color=_EDGE, lw=1, ls="--", label=r"isotropic noise, $\delta(\sqrt{B}+\sqrt{D})$")
        ax.plot(
            *_curve(_visible(spectrum)), color=_EDGE, lw=1.2, ls=":", label="noisy if isotropic, predicted"
        )
        note = f"{above} of {len(spectrum['clean'])} clean values above"
        ax.annotate(note, (1, edge), xycoords=("axes fraction", "data"), xytext=(-4, 4),
                    textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
    ax.set_yscale("log")
    ax.set_xlabel("index")
    tidy(ax)


def _visible(spectrum: SideSpectrum) -> list[float]:
    """The noisy values that isotropic noise would lead to, of the directions that are visible in it."""
    size = (spectrum["noise_rms"], spectrum["batch_size"], spectrum["dim"])
    clean = torch.tensor(spectrum["clean"], dtype=torch.float64)
    above = clean > spectrum["noise_rms"] * (spectrum["batch_size"] * spectrum["dim"]) ** 0.25
    return [float(f"{value:.6g}") for value in predicted_singular_values(clean, *size)[above].tolist()]


def _curve(values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Index and value, without the zeros, which a logarithmic axis cannot show."""
    kept = [(index, value) for index, value in enumerate(values, start=1) if value > 0]
    return [index for index, _ in kept], [value for _, value in kept]


def _exact(features: Tensor) -> Tensor:
    """In float64, in which the Gram route keeps the tail down to 1e-8 of the largest value."""
    features = features.detach()
    return (features.cpu() if features.device.type == "mps" else features).to(torch.float64)


def _values(features: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in singular_values(features).tolist()]
