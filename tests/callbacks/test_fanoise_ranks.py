from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from plain_module import Recorder
from processes import run_on_ranks
from torch import Tensor

from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.callbacks._shapes import ShapeMemory
from fanoise_lightning.callbacks._sites import LossSite
from fanoise_lightning.callbacks._source import NoiseSource
from fanoise_lightning.noise import NoiseShape

# as much of a trainer as is read by a draw
TRAINING = {
    "training": True,
    "sanity_checking": False,
    "global_step": 0,
    "_logger_connector": SimpleNamespace(should_update_logs=False),
}


def features(rank: int, rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(10 * seed + rank)
    decay = torch.linspace(1, 0.05, 12, dtype=torch.double)
    return torch.randn(rows, 12, generator=generator, dtype=torch.double) * decay


def covariance(shape: NoiseShape) -> Tensor:
    factor = torch.eye(shape.dim, dtype=torch.double)
    for part in reversed(shape.factors):
        factor = part @ factor
    return factor.T @ factor


def expected_covariance(x: Tensor, scaling: str, energy: str) -> Tensor:
    """By an SVD of the joined features, as the paper has it."""
    _, s, v = torch.linalg.svd(x, full_matrices=False)
    if scaling == "uniform":
        return torch.eye(x.shape[1], dtype=x.dtype)
    power = 1.0 if scaling == "linear" else 0.5
    weights = s.pow(power) / s.pow(power).mean()
    if energy == "constant":
        weights = weights * (x.shape[1] / weights.square().sum()).sqrt()
    return v.T @ torch.diag(weights.square()) @ v


@pytest.mark.parametrize("rows", [4, 9])  # of each of two ranks: fewer together than dimensions, or more
def test_the_global_shape_is_that_of_one_process_with_all_rows(rows):
    cases = [(s, e) for s in ("uniform", "linear", "sublinear") for e in ("paper", "constant")]

    def shapes(rank: int) -> list[Tensor]:
        memories = [ShapeMemory(scaling, energy, 0.0, 1, "global") for scaling, energy in cases]
        return [covariance(memory.shape("query", features(rank, rows), 0)) for memory in memories]

    everyone = torch.cat([features(rank, rows) for rank in range(2)])
    results = run_on_ranks(shapes, 2)
    for result in results:
        for case, actual in zip(cases, result):
            torch.testing.assert_close(actual, expected_covariance(everyone, *case), rtol=1e-5, atol=1e-7)


def test_the_global_average_is_that_of_one_process_with_all_rows():
    def shape(rank: int) -> Tensor:
        memory = ShapeMemory("sublinear", "paper", 0.5, 1, "global")
        for seed in range(3):
            kept = memory.shape("query", features(rank, 4, seed), seed)
        return covariance(kept)

    alone = ShapeMemory("sublinear", "paper", 0.5, 1)
    for seed in range(3):
        everyone = torch.cat([features(rank, 4, seed) for rank in range(2)])
        expected = covariance(alone.shape("query", everyone, seed))
    for actual in run_on_ranks(shape, 2):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("rows", [(3, 5), (9, 14)])
def test_the_energy_of_a_global_average_is_that_of_the_joined_batch(rows):
    def energy(rank: int) -> float:
        memory = ShapeMemory("sublinear", "paper", 0.7, 1, "global")
        for seed in range(3):
            shape = memory.shape("target", features(rank, rows[rank], seed), seed)
        return covariance(shape).trace().item()

    s = torch.linalg.svdvals(torch.cat([features(rank, rows[rank], 2) for rank in range(2)])).sqrt()
    for actual in run_on_ranks(energy, 2):
        assert actual == pytest.approx((s / s.mean()).square().sum().item(), rel=1e-4)


def test_the_local_shape_is_that_of_the_rank():
    def shape(rank: int) -> Tensor:
        return covariance(ShapeMemory("sublinear", "paper", 0.0, 1).shape("query", features(rank, 9), 0))

    for rank, actual in enumerate(run_on_ranks(shape, 2)):
        expected = expected_covariance(features(rank, 9), "sublinear", "paper")
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def draw(rank: int, query: Tensor, target: Tensor) -> tuple[dict[str, Tensor], int]:
    source = NoiseSource(ShapeMemory("sublinear", "paper", 0.0, 1, "global"), lambda step: 0.5)
    source.begin(SimpleNamespace(**TRAINING), key=(1, rank, 0))
    noise = source.draw({"query": query, "target": target}, number=0)
    return noise, int(source.skipped)


def test_each_rank_and_side_draws_its_own_noise():
    same = features(0, 9)
    drawn = [
        noise
        for noises, _ in run_on_ranks(lambda rank: draw(rank, same, same), 2)
        for noise in noises.values()
    ]
    assert len({tensor[0, 0].item() for tensor in drawn}) == 4


def test_broken_features_on_one_rank_leave_every_rank_without_noise():
    def draw_broken(rank: int) -> tuple[dict[str, Tensor], int]:
        query = features(rank, 9)
        if rank == 1:
            query[0, 0] = torch.nan
        return draw(rank, query, features(rank, 9, seed=1))

    for noises, skipped in run_on_ranks(draw_broken, 2):
        assert skipped == 1
        assert not any(noise.any() for noise in noises.values())


@pytest.mark.parametrize("rows", [(3, 5), (9, 14)])  # fewer together than dimensions, or more
def test_ranks_may_have_different_numbers_of_hard_negatives(rows):
    def shape(rank: int) -> Tensor:
        memory = ShapeMemory("sublinear", "paper", 0.0, 1, "global")
        return covariance(memory.shape("target", features(rank, rows[rank]), 0))

    everyone = torch.cat([features(rank, rows[rank]) for rank in range(2)])
    for actual in run_on_ranks(shape, 2):
        expected = expected_covariance(everyone, "sublinear", "paper")
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_unequal_batches_are_an_error_on_every_rank_and_no_hang():
    def fit_unequal(rank: int) -> str:
        callback, loss = FANoise(scope="global"), Recorder()
        callback._source.begin(SimpleNamespace(**TRAINING), key=(1, rank, 0))
        site = LossSite("loss", loss, callback._source, ("query", "target"), True, False, True, lambda: 0)
        with pytest.raises(ValueError, match="must be the same on every rank") as error:
            site._before(loss, (features(rank, 4 + rank), features(rank, 4 + rank)), {})
        return str(error.value)

    for message in run_on_ranks(fit_unequal, 2, timeout=20):
        assert "(4, 12, 4, 12) on rank 0" in message
        assert "(5, 12, 5, 12) on rank 1" in message


def test_a_scope_must_be_known():
    with pytest.raises(ValueError, match="`scope` must be one of 'local', 'global', got 'all'"):
        FANoise(scope="all")
