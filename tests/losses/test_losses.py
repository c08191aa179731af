from __future__ import annotations

import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional as F

from fanoise_lightning import FeatureTap, InfoNCE
from fanoise_lightning.callbacks._features import FeatureFinder
from fanoise_lightning.losses import SigmoidLoss, tiled
from fanoise_lightning.training.describe import describe


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


@pytest.mark.parametrize("symmetric", [False, True])
def test_label_smoothing_is_that_of_torch(symmetric):
    query, target, hard = unit(6), unit(6, seed=1), unit(0 if symmetric else 3, seed=2)
    loss = InfoNCE(0.1, symmetric=symmetric, label_smoothing=0.2)(query, target, hard)
    logits = query @ torch.cat([target, hard]).T / 0.1
    expected = [F.cross_entropy(logits, torch.arange(6), label_smoothing=0.2)]
    if symmetric:
        expected.append(F.cross_entropy(logits.T, torch.arange(6), label_smoothing=0.2))
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_label_smoothing_passes_over_excluded_candidates():
    query, target = unit(3), unit(3, seed=1)
    loss = InfoNCE(0.1, label_smoothing=0.2)(query, target, target_ids=torch.tensor([5, 5, 6]))
    logits = query @ target.T / 0.1
    rows = [(logits[0, [0, 2]], 0), (logits[1, [1, 2]], 0), (logits[2], 2)]
    expected = [F.cross_entropy(row, torch.tensor(own), label_smoothing=0.2) for row, own in rows]
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_label_smoothing_block_by_block(monkeypatch):
    def run():
        query, target = unit(12).requires_grad_(), unit(12, seed=1)
        loss = InfoNCE(0.1, label_smoothing=0.2)(query, target, target_ids=torch.arange(12) // 2)
        loss.backward()
        return loss.detach(), query.grad

    whole = run()
    monkeypatch.setattr(tiled, "MAX_LOGITS", 12)
    monkeypatch.setattr(tiled, "MIN_ROWS", 5)
    torch.testing.assert_close(run(), whole)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_label_smoothing_must_be_a_share(smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        InfoNCE(label_smoothing=smoothing)


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


# Rows with the same target


def by_masked_loop(query, target, ids, negatives=(), temperature=0.1) -> float:
    """Query by query, over its own target, those with another number, and the hard negatives."""
    total = 0.0
    for i, q in enumerate(query.double()):
        others = [t for j, t in enumerate(target) if j != i and (ids[j] != ids[i] or ids[i] < 0)]
        scores = torch.stack([(q @ c.double()) / temperature for c in [target[i], *others, *negatives]])
        total += float(scores.logsumexp(0) - scores[0])
    return total / len(query)


IDS = ([-1] * 6, [0, 1, 0, 2, 1, 0], [3, -1, 3, -1, 4, 5], [7] * 6)


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("negatives", [0, 3])
def test_pairs_with_the_same_target_are_not_each_others_negatives(ids, negatives):
    query, target, hard = unit(6), unit(6, seed=1), unit(negatives, seed=2) if negatives else None
    loss = InfoNCE(0.1)(query, target, hard, torch.tensor(ids))
    expected = by_masked_loop(query, target, ids, () if hard is None else hard)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("ids", IDS)
def test_in_the_other_direction_they_are_left_out_as_well(ids):
    query, target = unit(6), unit(6, seed=1)
    loss = InfoNCE(0.1, symmetric=True)(query, target, unit(3, seed=2), torch.tensor(ids))
    expected = by_masked_loop(query, target, ids, unit(3, seed=2)) + by_masked_loop(target, query, ids)
    assert loss.item() == pytest.approx(expected / 2, rel=1e-5, abs=1e-6)


def test_a_pair_that_is_left_out_gets_no_gradient_from_the_other():
    query, target = unit(2).requires_grad_(), unit(2, seed=1).requires_grad_()
    loss = InfoNCE(0.1)(query, target, unit(1, seed=2), torch.tensor([4, 4]))
    (grad,) = torch.autograd.grad(loss, target)
    alone = InfoNCE(0.1)(query[:1], target[:1], unit(1, seed=2)) / 2  # the mean is over two queries
    assert torch.allclose(grad[0], torch.autograd.grad(alone, target)[0][0], rtol=1e-6)


@pytest.mark.parametrize("ids", [torch.zeros(3, dtype=torch.long), torch.zeros(4), torch.zeros(4, 1).long()])
def test_target_ids_that_do_not_fit_are_named(ids):
    with pytest.raises(ValueError, match=r"`target_ids` of shape \(4,\) and an integer dtype, got"):
        InfoNCE()(unit(4), unit(4), target_ids=ids)


# The loss of SigLIP


def by_sigmoid_loop(query, target, negatives=(), ids=None, scale=10.0, bias=-10.0) -> float:
    total = 0.0
    for i, q in enumerate(query.double()):
        for j, c in enumerate([*target.double(), *negatives]):
            if ids is not None and j != i and j < len(target) and ids[j] == ids[i] >= 0:
                continue
            logit = float(scale * q @ c.double() + bias)
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total / len(query)


@pytest.mark.parametrize("ids", [None, *IDS])
@pytest.mark.parametrize("negatives", [0, 4])
def test_the_sigmoid_loss_is_the_double_loop(ids, negatives):
    query, target, hard = unit(6), unit(6, seed=1), unit(negatives, seed=2) if negatives else None
    loss = SigmoidLoss()(query, target, hard, None if ids is None else torch.tensor(ids))
    expected = by_sigmoid_loop(query, target, () if hard is None else hard, ids)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_scale_and_bias_start_as_in_the_paper_and_learn():
    loss = SigmoidLoss()
    assert loss.logit_scale.item() == pytest.approx(math.log(10))
    assert loss.scale.item() == pytest.approx(10)
    assert loss.bias.item() == -10
    loss(unit(6), unit(6, seed=1)).backward()
    assert loss.logit_scale.grad.abs() > 0
    assert loss.bias.grad.abs() > 0
    assert SigmoidLoss(temperature=0.5, initial_bias=-2).scale.item() == pytest.approx(2)


def test_a_pair_that_is_told_with_confidence_keeps_its_small_gradient():
    """Nothing of the loss at z * logit = 15, 3e-7, is lost to rounding beside numbers of the size of 15."""
    query = torch.eye(2).requires_grad_()
    SigmoidLoss(temperature=1 / 30, initial_bias=-15)(query, torch.eye(2)).backward()
    assert torch.allclose(query.grad.diagonal(), torch.tensor(-30 / (1 + math.exp(15)) / 2), rtol=1e-3)


def test_the_sigmoid_loss_is_float32_under_autocast():
    query, target = unit(16).bfloat16(), unit(16, seed=1).bfloat16()
    expected = SigmoidLoss()(query.float(), target.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(SigmoidLoss()(query, target), expected)


def test_its_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"`temperature`.*-1"):
        SigmoidLoss(temperature=-1)
    with pytest.raises(ValueError, match=r"SigmoidLoss needs.*\(4, 8\) and \(3, 8\)"):
        SigmoidLoss()(unit(4), unit(3))
    with pytest.raises(ValueError, match="batch of 0 pairs"):
        SigmoidLoss()(unit(0), unit(0), unit(2))


# Against open_clip


def test_they_are_the_losses_of_open_clip():
    query, target = unit(6), unit(6, seed=1)
    clip = ClipLoss()(query, target, 10.0)
    assert InfoNCE(0.1, symmetric=True)(query, target).item() == pytest.approx(clip.item(), rel=1e-6)
    siglip = SigLipLoss()(query, target, 10.0, -10.0)
    assert SigmoidLoss()(query, target).item() == pytest.approx(siglip.item(), rel=1e-6)


# What else takes them


@pytest.mark.parametrize("loss", [InfoNCE(0.1, symmetric=True, learnable_temperature=True), SigmoidLoss()])
def test_they_compile_as_one_graph(loss):
    arguments = (unit(6), unit(6, seed=1), unit(2, seed=2), torch.tensor([0, 0, 1, -1, -1, 2]))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    assert compiled(*arguments).item() == pytest.approx(loss(*arguments).item(), rel=1e-6)


@pytest.mark.parametrize("loss", [InfoNCE(0.07, symmetric=True, gather=False), SigmoidLoss(0.2, -5.0)])
def test_a_checkpoint_can_describe_them(loss):
    again = type(loss)(**describe(loss)["init_args"])
    assert repr(again) == repr(loss)


@pytest.mark.parametrize("loss", [InfoNCE(), SigmoidLoss()])
def test_the_callback_finds_the_features_in_any_call(loss):
    query, target, hard, ids = unit(4), unit(4, seed=1), unit(2, seed=2), torch.arange(4)
    for args, kwargs in [
        ((query, target, hard, ids), {}),
        ((query, target, hard), {"target_ids": ids}),
        ((), {"target_ids": ids, "negatives": hard, "target": target, "query": query}),
    ]:
        call = FeatureFinder(loss).find(args, kwargs)
        features = call.features()
        assert [x.data_ptr() for x in features["query"]] == [query.data_ptr()]
        assert [x.data_ptr() for x in features["target"]] == [target.data_ptr(), hard.data_ptr()]
        args, kwargs = call.replaced({"target": [-target, -hard]})
        assert torch.equal(loss(*args, **kwargs), loss(query, -target, -hard, ids))


def test_a_feature_tap_returns_what_it_gets():
    query, target = unit(3), unit(3, seed=1)
    first, second = FeatureTap()(query, target)
    assert first is query
    assert second is target
