"""Noise inside the encoder with GradCache, and on one side alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from noisy_sites import Contrasts, Drops, Seen, contrasts, fit, same
from plain_module import Pairs, PlainModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fanoise_lightning import InfoNCE
from fanoise_lightning.callbacks import FANoise
from fanoise_lightning.training.grad_cache import embed_in_chunks


def test_both_passes_of_grad_cache_see_the_same_noise():
    seen = Seen("encoder.head")
    fit(contrasts(3), FANoise(0.5, target="encoder.head", where="input"), seen, steps=2)
    chunks = 2 * 3  # of queries and targets; the last is embedded once
    for step in range(2):
        calls = [x for x, _ in seen.calls[(2 * chunks - 1) * step :][: 2 * chunks - 1]]
        again = [*calls[chunks:][::-1], calls[chunks - 1]]
        assert all(torch.equal(a, b) for a, b in zip(calls[:chunks], again, strict=True))


def test_gradients_of_grad_cache_are_those_of_the_whole_batch_with_that_noise():
    encoder, loss = nn.Linear(6, 8), InfoNCE(0.1)
    sides = [side.split(3) for side in torch.randn(2, 8, 6)]
    noisy: list[Tensor] = []

    def embed(x: Tensor) -> Tensor:
        x = x + 0.3 * torch.randn(()) * torch.ones_like(x)
        noisy.append(x)
        return F.normalize(encoder(x), dim=1)

    loss(*embed_in_chunks(embed, sides, list(encoder.parameters()))).backward()
    found = encoder.weight.grad.clone()
    encoder.weight.grad = None
    query, target = (F.normalize(encoder(torch.cat(noisy[i : i + 3])), dim=1) for i in (0, 3))
    loss(query, target).backward()
    torch.testing.assert_close(found, encoder.weight.grad)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("side", ["query", "target"])
def test_one_side_alone(chunk_size, side):
    seen = Seen("encoder.head")
    fit(
        contrasts(chunk_size), FANoise(0.5, target="encoder.head", where="input", sides=[side]), seen, steps=1
    )
    clean = torch.cat(list(next(iter(DataLoader(Pairs(), batch_size=8)))))
    found = torch.cat([x for x, _ in seen.calls])[: len(clean)]  # the first pass
    equal = [torch.equal(*part) for part in zip(clean.split(8), found.split(8))]
    assert equal == [side == "target", side == "query"]


@pytest.mark.parametrize("side", ["query", "target"])
@pytest.mark.parametrize(("chunk_size", "use_reentrant"), [(None, True), (None, False), (3, False)])
def test_one_side_alone_in_a_checkpointed_part(chunk_size, use_reentrant, side):
    """In the backward pass nobody says which side is computed again."""

    def run(**checkpointing: Any) -> nn.Module:
        seed_everything(0, verbose=False)
        noise = FANoise(0.5, target="encoder.head", where="input", sides=[side])
        return fit(Contrasts(Drops(**checkpointing), InfoNCE(0.1), chunk_size=chunk_size), noise)

    assert same(run(use_reentrant=use_reentrant), run())


def test_one_side_in_a_module_that_does_not_say_which_is_an_error():
    with pytest.raises(ValueError, match=r"cannot know for which side 'net' is called"):
        fit(PlainModule(), FANoise(target="net", where="input", sides=["query"]))
