"""The regularisers that the studies compare noise with do what they are named after."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F

from examples.studies import regularisers
from fanoise_lightning import InfoNCE


def unit(rows: int, dim: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(rows)), dim=1)


def test_isotropy_is_the_statistic_of_the_projections():
    features = unit(40, 8)
    torch.manual_seed(3)
    found = regularisers.sigreg(features)
    torch.manual_seed(3)
    slices = F.normalize(torch.randn(8, regularisers.SLICES), dim=0).double().numpy()
    knots = np.linspace(-5, 5, regularisers.KNOTS)
    expected = []
    for direction in slices.T:
        projected = 8**0.5 * features.double().numpy() @ direction
        empirical = np.array([np.exp(1j * t * projected).mean() for t in knots])
        normal = np.exp(-(knots**2) / 2)
        expected.append(40 * np.trapezoid(np.abs(empirical - normal) ** 2 * normal, knots))
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_isotropy_is_low_for_isotropic_features_and_has_a_gradient():
    even = unit(256, 16)
    uneven = F.normalize(even * torch.linspace(0, 1, 16) ** 2, dim=1)
    assert regularisers.sigreg(even) < 2 < regularisers.sigreg(uneven)
    plain, query = InfoNCE(0.1)(uneven, even), uneven.clone().requires_grad_()
    loss = regularisers.IsotropicInfoNCE(0.1, weight=0.5)(query, even)
    loss.backward()
    assert loss > plain + 1
    assert query.grad.abs().sum() > 0


def test_box_noise_has_the_asked_amount_in_training_alone():
    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.head = nn.Identity()

    model, features = Model(), 3 * torch.randn(200, 100)
    regularisers.BoxNoise("head", alpha=0.5).setup(None, model, "fit")
    noise = model.head(features) - features
    assert (noise.norm() / features.norm()).item() == pytest.approx(0.5, rel=0.02)
    assert noise.abs().max() <= 0.5 * (3 * features.square().mean()).sqrt() * 1.001
    model.eval()
    assert torch.equal(model.head(features), features)
