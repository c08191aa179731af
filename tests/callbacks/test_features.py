"""Which arguments of a loss are features, and of which side."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fanoise_lightning import FeatureTap
from fanoise_lightning.callbacks._features import FeatureFinder


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


Q, T, N, M = (unit(rows, 6, seed) for seed, rows in enumerate((8, 8, 5, 4)))
ONE_HOT = torch.eye(6)[torch.arange(8) % 6]


def loss_of(forward) -> nn.Module:
    loss = nn.Module()
    loss.forward = forward
    return loss


CALLS = {
    "by position": (lambda q, t: 0, (Q, T), {}, "q t"),
    "by name": (lambda q, t: 0, (), {"t": T, "q": Q}, "q t"),
    "a square mask before the features": (lambda m, q, t: 0, (torch.ones(8, 8).tril(), Q, T), {}, "q t"),
    "a mask by its name": (lambda mask, q, t: 0, (torch.rand(8, 8), Q, T), {}, "q t"),
    "an additive mask": (lambda m, q, t: 0, (torch.zeros(8, 8).fill_diagonal_(-torch.inf), Q, T), {}, "q t"),
    "weights of the features' shape": (lambda q, t, sample_weights: 0, (Q, T, torch.rand(8, 6)), {}, "q t"),
    "one-hot labels of the features' width": (lambda q, y, t: 0, (Q, ONE_HOT, T), {}, "q t"),
    "soft labels of the features' width": (lambda q, y, t: 0, (Q, torch.rand(8, 6).softmax(1), T), {}, "q t"),
    "a matrix of another width": (lambda x, q, t: 0, (torch.rand(8, 9), Q, T), {}, "q t"),
    "integers and scalars": (lambda q, t, ids, scale: 0, (Q, T, torch.arange(8), torch.ones(())), {}, "q t"),
    "hard negatives": (lambda q, t, negatives=None: 0, (Q, T, N), {}, "q t negatives"),
    "no hard negatives": (lambda q, t, negatives=None: 0, (Q, T, None), {}, "q t"),
    "a triplet": (lambda anchor, positive, negative: 0, (Q, T, M), {}, "anchor positive negative"),
    "a negative in between": (lambda a, negative, p: 0, (Q, M, T), {}, "a p negative"),
    "two of them": (lambda q, t, hard_neg, soft_neg: 0, (Q, T, N, M), {}, "q t hard_neg soft_neg"),
    "a teacher's pair": (lambda q, t, teacher_q, teacher_t: 0, (Q, T, Q, T), {}, "q t"),
    "two of them, numbered": (lambda q, t, hard1, hard2: 0, (Q, T, N, M), {}, "q t hard1 hard2"),
    "negatives of each query": (
        lambda q, t, negatives: 0,
        (Q, T, torch.stack([Q, T], 1)),
        {},
        "q t negatives",
    ),
    "a list of negatives": (lambda q, t, neg: 0, (Q, T, [N, M]), {}, "q t neg[0] neg[1]"),
    "a tuple of both sides": (lambda pair: 0, ((Q, T),), {}, "pair[0] pair[1]"),
    "an unknown third": (lambda q, t, x: 0, (Q, T, N), {}, "q t x"),
    "a teacher": (lambda q, t, teacher: 0, (Q, T, Q + 1), {}, "q t"),
    "prototypes": (lambda anchors, targets, prototypes: 0, (Q, T, N), {}, "anchors targets"),
    "embeddings of labels": (lambda image, label_embeddings: 0, (Q, T), {}, "image label_embeddings"),
    "a queue": (lambda q, k, queue: 0, (Q, T, N), {}, "q k queue"),
    "starred": (lambda *features: 0, (Q, T, N, M), {}, "features[0] features[1] features[2] features[3]"),
    "starred negatives": (lambda q, t, *negatives: 0, (Q, T, N, M), {}, "q t negatives[0] negatives[1]"),
    "keywords of any name": (lambda **kw: 0, (), {"image": Q, "text": T, "logits": M}, "image text"),
    "the batch as wide as the features": (lambda z1, z2: 0, (unit(6, 6, 4), unit(6, 6, 5)), {}, "z1 z2"),
    "half precision": (lambda q, t: 0, (Q.half(), T.bfloat16()), {}, "q t"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_features_of_a_call(name):
    forward, args, kwargs, expected = CALLS[name]
    finder = FeatureFinder(loss_of(forward))
    for _ in range(2):  # what was judged once stays so
        call = finder.find(args, kwargs)
        names = call.names()
        assert [*names["query"], *names["target"]] == expected.split()
    noisy = {side: [x + 1 for x in values] for side, values in call.features().items()}
    new_args, new_kwargs = call.replaced(noisy)
    replaced = inspect_arguments(forward, new_args, new_kwargs)
    before = inspect_arguments(forward, args, kwargs)
    assert list(replaced) == list(before)
    for place, value in before.items():
        if place in expected.split():
            assert torch.equal(replaced[place], value + 1)
        else:
            assert replaced[place] is value


def inspect_arguments(forward, args, kwargs) -> dict:
    flat = {}
    for name, value in inspect.signature(forward).bind(*args, **kwargs).arguments.items():
        if isinstance(value, (list, tuple)):
            flat |= {f"{name}[{i}]": item for i, item in enumerate(value)}
        elif isinstance(value, dict):
            flat |= value
        else:
            flat[name] = value
    return flat


def test_a_compiled_loss_has_the_arguments_of_the_plain_one():
    class Weighted(nn.Module):
        def forward(self, query, target, weights): ...

    args = (Q, T, torch.rand(8, 6))
    compiled = FeatureFinder(torch.compile(Weighted(), backend="eager")).find(args, {})
    assert compiled.names() == FeatureFinder(Weighted()).find(args, {}).names()


LOGITS = Q @ T.T
REFUSED = {
    "logits by name": (
        lambda logits_per_image, logits_per_text: 0,
        (LOGITS, LOGITS.T),
        "`logits_per_image` (8, 8)",
    ),
    "logits by value": (
        lambda a, b: 0,
        (10 * LOGITS, 10 * LOGITS.T),
        "`a` (8, 8) is the transpose of another",
    ),
    "similarities": (lambda sim_q, sim_t: 0, (Q, T), "`sim_q` (8, 6) is named like"),
    "features and one-hot labels": (lambda x, y: 0, (Q, ONE_HOT), "`y` (8, 6) holds only zeros and ones"),
    "features and labels": (lambda x, y: 0, (Q, torch.arange(8)), "found `x` alone"),
    "widths that differ": (lambda x, y: 0, (Q, unit(8, 5, 3)), "`y` (8, 5) has no partner of its width"),
    "views": (lambda x: 0, (torch.rand(8, 2, 6),), "found none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_without_features_of_both_sides_is_refused_by_name(name):
    forward, args, message = REFUSED[name]
    finder = FeatureFinder(loss_of(forward))
    call = finder.find(args, {})
    assert len(call.features()) < 2
    text = str(finder.error(call, ("query", "target"), "criterion"))
    assert message in text
    assert "FANoise(sides=['query'])" in text
    assert "FeatureTap" in text


def test_a_broken_first_batch_is_judged_when_a_whole_one_comes():
    finder = FeatureFinder(loss_of(lambda m, q, t: 0))
    mask = torch.ones(8, 8).tril()
    for broken in (torch.zeros(8, 6), torch.full((8, 6), torch.nan), torch.empty(0, 6)):
        assert finder.find((mask, broken, T), {}).names() == {"query": ["q"], "target": ["t"]}
    assert finder.find((mask, Q, T), {}).names() == {"query": ["q"], "target": ["t"]}


def test_a_tap_is_not_judged():
    call = FeatureFinder(FeatureTap()).find((ONE_HOT, torch.eye(8), N), {})
    assert [len(x) for x in call.features().values()] == [1, 2]


def test_signatures_of_other_libraries():
    class NTXentLoss(nn.Module):  # lightly
        def forward(self, out0, out1): ...

    class SelfSupervisedLoss(nn.Module):  # pytorch-metric-learning
        def forward(self, embeddings, ref_emb): ...

    class TripletLoss(nn.Module):  # pytorch-metric-learning
        def forward(self, embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None): ...

    for loss in (NTXentLoss(), SelfSupervisedLoss()):
        assert set(FeatureFinder(loss).find((Q, T), {}).features()) == {"query", "target"}
    found = FeatureFinder(TripletLoss()).find((Q, torch.arange(8)), {"ref_emb": T})
    assert found.names() == {"query": ["embeddings"], "target": ["ref_emb"]}
