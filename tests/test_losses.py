from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fanoise_lightning import FeatureTap, InfoNCE


def unit(rows: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def by_double_loop(query, target, negatives=(), temperature=0.1, symmetric=False) -> float:
    def one_way(queries, candidates, own):
        total = 0.0
        for i, q in enumerate(queries):
            scores = [float(q @ c) / temperature for c in candidates]
            top = max(scores)
            total += top + math.log(sum(math.exp(s - top) for s in scores)) - scores[own(i)]
        return total / len(queries)

    query, target, negatives = (x.double().tolist() if len(x) else [] for x in (query, target, negatives))
    query, target, negatives = (list(map(torch.tensor, x)) for x in (query, target, negatives))
    loss = one_way(query, [*target, *negatives], lambda i: i)
    return (loss + one_way(target, query, lambda i: i)) / 2 if symmetric else loss


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("negatives", [0, 1, 5])
def test_info_nce_is_the_double_loop(symmetric, negatives):
    query, target, hard = unit(6), unit(6, seed=1), unit(negatives, seed=2) if negatives else None
    loss = InfoNCE(temperature=0.1, symmetric=symmetric)(query, target, hard)
    expected = by_double_loop(query, target, () if hard is None else hard, symmetric=symmetric)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_logits_are_float32_under_autocast_and_for_half_features():
    query, target = unit(16), unit(16, seed=1)
    loss = InfoNCE(temperature=0.01)
    expected = loss(query.bfloat16().float(), target.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(query.bfloat16(), target.bfloat16())
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


def test_a_learnable_temperature_starts_at_the_given_one_and_gets_a_gradient():
    loss = InfoNCE(temperature=0.05, learnable_temperature=True)
    value = loss(unit(6), unit(6, seed=1))
    assert value.item() == pytest.approx(InfoNCE(temperature=0.05)(unit(6), unit(6, seed=1)).item(), rel=1e-5)
    value.backward()
    assert loss.logit_scale.grad.abs() > 0
    assert loss.scale.item() == pytest.approx(20, rel=1e-5)


def test_a_learned_logit_scale_is_held_at_a_hundred():
    loss = InfoNCE(temperature=0.001, learnable_temperature=True)
    assert loss.scale.item() == pytest.approx(100)


def test_a_fixed_temperature_adds_nothing_to_the_checkpoint():
    assert not InfoNCE().state_dict()


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_bad_temperature_is_named(temperature):
    with pytest.raises(ValueError, match=f"`temperature`.*{temperature}"):
        InfoNCE(temperature=temperature)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(4, 8\) and \(3, 8\)"):
        InfoNCE()(unit(4), unit(3))
    with pytest.raises(ValueError, match=r"\(M, 8\), got \(3, 4\)"):
        InfoNCE()(unit(4), unit(4), unit(3, dim=4))


def test_a_batch_of_one_without_negatives_is_an_error_and_with_them_is_not():
    with pytest.raises(ValueError, match="batch of 1 without hard negatives"):
        InfoNCE()(unit(1), unit(1))
    assert InfoNCE()(unit(1), unit(1, seed=1), unit(2, seed=2)).isfinite()


def test_a_feature_tap_returns_what_it_gets():
    query, target = unit(3), unit(3, seed=1)
    first, second = FeatureTap()(query, target)
    assert first is query
    assert second is target
