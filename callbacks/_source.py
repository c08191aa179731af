"""The noise of one call of the loss: shaped, seeded, and zero if the features are broken."""

from __future__ import annotations

import torch
from torch import Tensor

from fanoise_lightning.callbacks._features import SIDES
from fanoise_lightning.callbacks._shapes import ShapeMemory
from fanoise_lightning.noise import row_norm
from fanoise_lightning.seeds import derive_seed
from fanoise_lightning.spectrum import effective_rank, singular_values


class NoiseSource:
    """Draws noise, and counts the calls that had to go without.

    Args:
        shapes: gives the shape of the noise.
        relative: multiply the noise level by the root mean square row norm of the features.
    """

    def __init__(self, shapes: ShapeMemory, relative: bool = False) -> None:
        self.shapes = shapes
        self.relative = relative
        self.skipped: Tensor | int = 0  # on the device: reading it waits

    def draw(
        self, features: dict[str, Tensor], alpha: float, step: int, call: int, key: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """Noise for every side, or zeros for all sides if any is broken; decided on the device.

        Args:
            features: side to (B, D).
            alpha: the noise level.
            step: the number of the batch in the fit.
            call: the number of the call of the loss in the batch.
            key: further parts of the noise's seed: the run's seed, the rank, the number of the callback.
        """
        noise: dict[str, Tensor] = {}
        broken = torch.zeros((), dtype=torch.bool, device=next(iter(features.values())).device)
        for side, x in features.items():
            try:
                if x.numel() == 0:
                    raise torch.linalg.LinAlgError("no features")
                shape = self.shapes.shape(side, x, step, call)
            except torch.linalg.LinAlgError:
                broken, noise[side] = torch.ones_like(broken), torch.zeros_like(x)
                continue
            seed = derive_seed(*key, step, call, SIDES.index(side))
            generator = torch.Generator(x.device).manual_seed(seed)
            level = alpha * row_norm(x) if self.relative else alpha
            noise[side] = shape.sample(x, level, generator)
            broken = broken | ~(noise[side].isfinite().all() & x.isfinite().all() & x.any())
        self.skipped = broken + self.skipped
        return {side: torch.where(broken, torch.zeros_like(x), x) for side, x in noise.items()}


def add_noise(features: Tensor, noise: Tensor, renormalize: bool) -> Tensor:
    """Noisy features (B, D) in the features' dtype; `renormalize` keeps the norm of every row."""
    noisy = features + noise.to(features.dtype)
    if not renormalize:
        return noisy
    norm, noisy_norm = (x.norm(dim=1, keepdim=True) for x in (features, noisy))
    return noisy * (norm / noisy_norm.clamp_min(torch.finfo(noisy.dtype).tiny))


def statistics(features: dict[str, Tensor], noise: dict[str, Tensor]) -> dict[str, Tensor]:
    """The effective rank of the features and the ratio of noise to features, each the mean over the sides."""
    ranks, ratios = [], []
    for side, x in features.items():
        try:
            ranks.append(effective_rank(singular_values(x)))
        except torch.linalg.LinAlgError:
            ranks.append(torch.full((), torch.nan, device=x.device))
        ratios.append(noise[side].float().norm() / x.detach().float().norm())
    return {
        "effective_rank": torch.stack(ranks).mean(),
        "noise_to_signal": torch.stack(ratios).mean(),
    }
