"""The Matryoshka loss is the weighted mean of a loss over embeddings cut to their first dimensions."""

from __future__ import annotations

import pytest
import torch
from open_clip.loss import ClipLoss
from torch.nn import functional as F
from toy_encoder import ToyEncoder

from fanoise_lightning import ContrastiveModule, InfoNCE, MatryoshkaLoss, SigmoidLoss
from fanoise_lightning.callbacks._features import FeatureFinder
from fanoise_lightning.callbacks._loss_search import find_loss
from fanoise_lightning.training.describe import describe


def unit(rows: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_it_is_the_weighted_mean_of_open_clips_loss_on_cut_features():
    query, target = unit(6).requires_grad_(), unit(6, seed=1).requires_grad_()
    loss = MatryoshkaLoss(InfoNCE(0.1, symmetric=True), dims=[8, 4, 1], weights=[1.0, 0.5, 2.0])
    value = loss(query, target)
    cut = [(query, target)]  # as given
    cut += [[F.normalize(x[:, :d], dim=1) for x in (query, target)] for d in (4, 1)]
    parts = [ClipLoss()(*sides, 10.0) for sides in cut]
    expected = (parts[0] + 0.5 * parts[1] + 2 * parts[2]) / 3.5
    torch.testing.assert_close(value, expected)
    sides = (query, target)
    torch.testing.assert_close(torch.autograd.grad(value, sides), torch.autograd.grad(expected, sides))


@pytest.mark.parametrize("inner", [InfoNCE(0.1), SigmoidLoss()])
def test_hard_negatives_and_known_answers_reach_every_length(inner):
    query, target, hard, ids = unit(6), unit(6, seed=1), unit(3, seed=2), torch.tensor([0, 0, 1, 2, 1, -1])
    value = MatryoshkaLoss(inner, dims=[5, 8])(query, target, hard, target_ids=ids)
    short = [F.normalize(x[:, :5], dim=1) for x in (query, target, hard)]
    expected = (inner(*short, target_ids=ids) + inner(query, target, hard, target_ids=ids)) / 2
    torch.testing.assert_close(value, expected)


def test_the_whole_features_keep_the_length_that_noise_gave_them():
    query, target = 1.5 * unit(4), 0.7 * unit(4, seed=1)
    torch.testing.assert_close(MatryoshkaLoss(InfoNCE(), [8])(query, target), InfoNCE()(query, target))


def test_large_batches_go_block_by_block(monkeypatch):
    query, target = unit(40).requires_grad_(), unit(40, seed=1)
    loss = MatryoshkaLoss(InfoNCE(0.1, learnable_temperature=True), [8, 4])
    whole = torch.autograd.grad(loss(query, target), (query, loss.loss.logit_scale))
    monkeypatch.setattr("fanoise_lightning.losses.tiled.MAX_LOGITS", 400)
    monkeypatch.setattr("fanoise_lightning.losses.tiled.MIN_ROWS", 7)
    torch.testing.assert_close(
        torch.autograd.grad(loss(query, target), (query, loss.loss.logit_scale)), whole
    )


def test_a_checkpoint_describes_it_with_its_loss():
    loss = MatryoshkaLoss(InfoNCE(0.05), dims=(8, 4), weights=(1, 0.5))
    described = describe(loss)
    assert described is not None
    assert described["init_args"]["dims"] == [8, 4]
    assert described["init_args"]["loss"]["init_args"]["temperature"] == 0.05


def test_its_scale_is_that_of_its_loss():
    assert MatryoshkaLoss(InfoNCE(0.1), [8]).scale == pytest.approx(10)
    assert MatryoshkaLoss(InfoNCE(0.1, gather=False), [8]).gather is False


@pytest.mark.parametrize(
    ("dims", "weights", "message"),
    [
        ([], None, "a list of different lengths, got \\[\\]"),
        (8, None, "a list of different lengths, got 8"),
        ([8, 4, 8], None, "a list of different lengths"),
        ([8, 0], None, "`dims`.*at least 1, got 0"),
        ([8.0], None, "`dims`.*whole numbers.*got 8.0"),
        ([8, 4], [1.0], "1 numbers for 2 `dims`"),
        ([8, 4], [1.0, 0.0], "`weights`.*0.0"),
    ],
)
def test_bad_lengths_are_named(dims, weights, message):
    with pytest.raises(ValueError, match=message):
        MatryoshkaLoss(InfoNCE(), dims, weights)


def test_it_takes_the_losses_of_the_package_alone():
    with pytest.raises(TypeError, match="takes InfoNCE or SigmoidLoss, got CrossEntropyLoss"):
        MatryoshkaLoss(torch.nn.CrossEntropyLoss(), [8])


def test_a_length_above_the_embeddings_is_named():
    with pytest.raises(ValueError, match=r"`dims` \[16, 8\].*above the 8"):
        MatryoshkaLoss(InfoNCE(), [16, 8])(unit(4), unit(4, seed=1))


def test_the_callback_adds_noise_before_features_are_cut():
    module = ContrastiveModule(ToyEncoder(), MatryoshkaLoss(InfoNCE(0.1), [24, 4]))
    assert find_loss(module) == ("loss", module.loss)
    call = FeatureFinder(module.loss).find((unit(4), unit(4, seed=1)), {})
    assert [x.shape for x in call.features()["query"]] == [(4, 8)]
