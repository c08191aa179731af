"""Draws the figures of the pages on noise from the package's own functions: ``python docs/figures.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning import feature_noise
from fanoise_lightning.figures.gradient_bias import gradient_bias
from fanoise_lightning.figures.overlaps import overlaps
from fanoise_lightning.figures.style import LAW_COLOURS

IMAGES = Path(__file__).parent / "images"
DRAWS = 20


def example_features(rows: int = 256, dim: int = 512) -> Tensor:
    """Unit rows (B, D) whose singular values fall off like a power of their number."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, dim + 1, dtype=torch.float64) ** -0.7
    features = torch.randn(rows, dim, dtype=torch.float64, generator=generator) * scale
    return F.normalize(features, dim=1)


def draw_noise(features: Tensor, scaling: str) -> Tensor:
    """Noise (K, B, D) at the same energy for every law."""
    generator = torch.Generator().manual_seed(1)
    noise = [
        feature_noise(features, 0.5, scaling, energy="constant", generator=generator) for _ in range(DRAWS)
    ]
    return torch.stack(noise)


def noise_strength(features: Tensor, directions: Tensor, scaling: str) -> Tensor:
    """The root mean square norm (R,) of the noise along each direction, at the same energy for every law."""
    noise = draw_noise(features, scaling)
    return torch.stack([(x @ directions.T).square().sum(dim=0) for x in noise]).mean(dim=0).sqrt()


def strength_figure(values: Tensor, strength: Tensor, scaling: str) -> Figure:
    """The features' singular values (R,), and the strength of the noise along the same directions (R,)."""
    figure = Figure(figsize=(3.2, 2.4), layout="constrained")
    ax = figure.subplots()
    numbers = range(1, len(values) + 1)
    ax.loglog(numbers, values, color="#555555", lw=2, label="features")
    ax.loglog(numbers, strength, color=LAW_COLOURS[scaling], lw=2, label=f"{scaling} noise")
    ax.set(xlabel="direction, strongest first", ylabel="strength", ylim=(0.08, 20))
    ax.legend(frameon=False, loc="upper right")
    return figure


def noisy_targets(features: Tensor) -> Tensor:
    """Targets (B, D) near their queries."""
    generator = torch.Generator().manual_seed(2)
    return F.normalize(features + 0.02 * torch.randn(features.shape, generator=generator), dim=1)


def save(figure: Figure, name: str) -> None:
    figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    """Write one file per scaling law, and one per figure of theory; the same bytes in every run."""
    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "svg.hashsalt": "fanoise"}
    features = example_features()
    _, values, directions = torch.linalg.svd(features, full_matrices=False)
    with matplotlib.rc_context(style):
        for scaling in LAW_COLOURS:
            save(strength_figure(values, noise_strength(features, directions, scaling), scaling), scaling)
        laws = {scaling: draw_noise(features, scaling) for scaling in LAW_COLOURS}
        save(overlaps(features, laws)[0], "overlaps")
        save(gradient_bias(features, noisy_targets(features), temperature=0.02)[0], "gradient_bias")


if __name__ == "__main__":
    main()
