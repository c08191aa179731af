"""How much noise there is."""

from __future__ import annotations

import math

import pytest
import torch
from plain_module import PlainModule, Recorder, fit
from torch.nn import functional as F

from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.callbacks._shapes import ShapeMemory

# Features that are not of unit length


class Scaled(PlainModule):
    """A loss that normalises inside gets features of any length."""

    def __init__(self, norm: float) -> None:
        super().__init__(Recorder())
        self.norm = norm
        self.clean: list[torch.Tensor] = []

    def embed(self, x):
        features = self.norm * super().embed(x)
        self.clean.append(features.detach())
        return features

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def noise(self) -> torch.Tensor:
        return torch.cat([call[0] for call in self.criterion.calls]) - torch.cat(self.clean[::2])


@pytest.mark.parametrize("norm", [1e-4, 0.1, 1.0, 11.3, 1e4])
@pytest.mark.parametrize("options", [{}, {"scaling": "uniform"}, {"momentum": 0.5}, {"every_n_steps": 2}])
def test_relative_noise_turns_rows_of_any_length_alike(norm, options):
    def noise(norm: float) -> torch.Tensor:
        module = Scaled(norm)
        fit(module, [FANoise(alpha=0.5, relative=True, seed=0, **options)])
        return module.noise()

    torch.testing.assert_close(noise(norm) / norm, noise(1.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("norm", "warned"), [(0.3, True), (0.7, False), (1.0, False), (1.5, False), (11.3, True)]
)
def test_rows_far_from_unit_length_are_warned_of_once_with_the_angle(recwarn, norm, warned):
    module = Scaled(norm)
    fit(module, [FANoise(alpha=0.1, energy="constant", warmup_steps=3, seed=0)])
    messages = [str(w.message) for w in recwarn if "row norm" in str(w.message)]
    assert len(messages) == warned
    if warned:
        angle = math.degrees(math.atan(0.1 / norm))  # E||noise row||^2 = alpha^2
        said = float(messages[0].split("turns them by ")[1].split(" degrees")[0])
        assert f"the query features have a root mean square row norm of {norm:.3g}" in messages[0]
        assert said == pytest.approx(angle, rel=0.3)
        assert "relative=True" in messages[0]


def test_relative_noise_is_not_warned_of(recwarn):
    fit(Scaled(11.3), [FANoise(relative=True)])
    assert not [w for w in recwarn if "row norm" in str(w.message)]


# Averaged statistics


def energy(factors: tuple[torch.Tensor, ...]) -> float:
    product = factors[0].double()
    for factor in factors[1:]:
        product = product @ factor.double()
    return product.square().sum().item()


def law_energy(x: torch.Tensor, scaling: str) -> float:
    """Of the published formula, by an SVD of the batch: the sum of S_i^2."""
    s = torch.linalg.svdvals(x.double())
    weights = s if scaling == "linear" else s.sqrt()
    return (weights / weights.mean()).square().sum().item()


def batches(kind: str, count: int = 21, rows: int = 32, dim: int = 512) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    decay = torch.arange(1, dim + 1).float() ** (-0.5 if kind == "decaying" else 0)
    x = [torch.randn(rows, dim, generator=generator) * decay for _ in range(count)]
    if kind == "cone":
        x = [part + 3 * dim**0.5 * F.one_hot(torch.tensor(0), dim) for part in x]
    return [F.normalize(part, dim=1) for part in x]


@pytest.mark.parametrize("rows", [32, 128])  # fewer than the 64 dimensions, or more
@pytest.mark.parametrize("kind", ["flat", "decaying", "cone"])
@pytest.mark.parametrize("scaling", ["linear", "sublinear"])
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_the_energy_under_momentum_is_that_of_each_batch(momentum, scaling, kind, rows):
    memory = ShapeMemory(scaling, "paper", momentum, 1)
    for step, x in enumerate(batches(kind, rows=rows, dim=64)):
        shape = memory.shape("query", x, step)
        assert energy(shape.factors) == pytest.approx(law_energy(x, scaling), rel=0.01), step


def test_the_energy_of_small_batches_in_many_dimensions():
    memory = ShapeMemory("sublinear", "paper", 0.9, 1)
    for step, x in enumerate(batches("flat")):  # 32 rows of 512
        shape = memory.shape("query", x, step)
    assert energy(shape.factors) == pytest.approx(law_energy(x, "sublinear"), rel=0.01)


def test_constant_energy_stays_constant_under_momentum():
    memory = ShapeMemory("sublinear", "constant", 0.9, 1)
    for step, x in enumerate(batches("decaying", dim=64)):
        assert energy(memory.shape("query", x, step).factors) == pytest.approx(64, rel=1e-4)


def test_the_shape_under_momentum_is_that_of_the_averaged_moment():
    """Against an eigendecomposition of the weighted sum of X^T X, in float64."""
    memory, x = ShapeMemory("sublinear", "constant", 0.8, 1), batches("decaying", count=6, dim=48)
    for step, part in enumerate(x):
        factor = memory.shape("query", part, step).factors[0].double()
    moment = sum(0.8 ** (5 - i) * part.double().T @ part.double() for i, part in enumerate(x))
    values, vectors = torch.linalg.eigh(moment)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T  # covariance: s, that is lambda^(1/2)
    torch.testing.assert_close(factor.T @ factor, root * 48 / root.trace(), rtol=1e-3, atol=1e-4)


def test_features_of_several_dtypes_keep_theirs():
    class Mixed(PlainModule):
        def __init__(self) -> None:
            class Loss(torch.nn.Module):
                def forward(self, query, key, queue):
                    self.dtypes = [x.dtype for x in (query, key, queue)]
                    return (query.float() * key.float()).sum() + queue.sum()

            super().__init__(Loss())

        def compute_loss(self, batch):
            query, key = self.embed(batch[0]).bfloat16(), self.embed(batch[1]).bfloat16()
            return self.criterion(query, key, torch.randn(4, 8))

    module = Mixed()
    fit(module, [FANoise()], max_steps=1)
    assert module.criterion.dtypes == [torch.bfloat16, torch.bfloat16, torch.float32]
