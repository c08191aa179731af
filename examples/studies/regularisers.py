"""Regularisers of other kinds, to compare noise with: arms of the studies of regularisers."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fanoise_lightning import InfoNCE
from fanoise_lightning.losses.contrastive_batch import ContrastiveBatch

KNOTS = 17
SLICES = 256


class IsotropicInfoNCE(InfoNCE):
    """InfoNCE plus SIGReg, which draws the features towards an isotropic distribution.

    Balestriero and LeCun, "LeJEPA", 2025: the Epps-Pulley statistic of random projections, against a
    standard normal. Features of unit length are scaled by sqrt(D): their projections have a mean square of 1.
    """

    def __init__(self, temperature: float = 0.02, weight: float = 0.05) -> None:
        super().__init__(temperature)
        self.weight = weight

    def total(self, batch: ContrastiveBatch) -> Tensor:
        isotropy = sigreg(batch.query) + sigreg(batch.target)
        return super().total(batch) + self.weight * len(batch.query) * isotropy


def sigreg(features: Tensor) -> Tensor:
    """The mean Epps-Pulley statistic, 0-d, of projections of (B, D) features of unit length."""
    rows, dim = features.shape
    slices = nn.functional.normalize(torch.randn(dim, SLICES, device=features.device), dim=0)
    knots = torch.linspace(-5, 5, KNOTS, device=features.device)
    normal = torch.exp(-knots.square() / 2)  # the characteristic function of N(0, 1), and the weight
    angles = (dim**0.5 * features @ slices)[..., None] * knots  # (B, S, T)
    gap = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    return rows * torch.trapezoid(gap * normal, knots, dim=-1).mean()


class BoxNoise(Callback):
    """Uniform noise in a box, as NEFTune's, on the input of a module.

    Jain et al., "NEFTune", 2023. `alpha` is the root mean square norm of a noise row relative to that of the
    features, as in ``FANoise(scaling="uniform", relative=True)``.
    """

    def __init__(self, target: str, alpha: float) -> None:
        self.target, self.alpha = target, alpha

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.get_submodule(self.target).register_forward_pre_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not module.training:
            return None
        (features,) = inputs
        size = features.detach().square().mean().sqrt()
        box = 2 * torch.rand_like(features) - 1  # of variance 1/3
        return (features + self.alpha * size * 3**0.5 * box,)
