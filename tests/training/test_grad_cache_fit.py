"""Fits of a few steps with chunks against those without."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from processes import run_on_ranks
from torch import Tensor
from toy_encoder import RowDropout, ToyEncoder

from fanoise_lightning import ContrastiveModule, InfoNCE
from fanoise_lightning.callbacks import FANoise


def batches(rank: int, chunk_size: int | None) -> list[dict]:
    generator = torch.Generator().manual_seed(100 + rank)
    made = []
    for _ in range(10):
        query = torch.randn(8, 8, generator=generator, dtype=torch.double)
        target = query + 0.3 * torch.randn(8, 8, generator=generator, dtype=torch.double)
        size = chunk_size or 8
        inputs = [[{"x": chunk} for chunk in side.split(size)] for side in (query, target)]
        query, target = inputs if chunk_size else (inputs[0][0], inputs[1][0])
        made.append({"query": query, "target": target, "target_id": torch.full((8,), -1)})
    return made


def fit(
    rank: int, world_size: int, chunk_size: int | None, accumulate: int, clip: float | None, scope: str | None
) -> Tensor:
    """The weights after five steps."""
    seed_everything(3, verbose=False)
    module = ContrastiveModule(
        ToyEncoder(RowDropout(0.2)),
        InfoNCE(0.1, learnable_temperature=True),
        partial(torch.optim.SGD, lr=0.5, momentum=0.9),
        chunk_size=chunk_size,
    ).double()
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        max_steps=5,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        callbacks=[FANoise(alpha=0.3, scope=scope)] if scope else [],
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches(rank, chunk_size), batch_size=None))
    return torch.cat([p.detach().flatten() for p in module.parameters()])


COMBINATIONS = list(itertools.product([1, 2], [None, 0.05], [None, "local", "global"]))


@pytest.mark.parametrize("world_size", [1, 2])
def test_five_steps_with_chunks_end_at_the_weights_without(world_size):
    def train(rank: int) -> list[tuple]:
        return [
            (case, fit(rank, world_size, None, *case), fit(rank, world_size, 3, *case))
            for case in COMBINATIONS
        ]

    ends = []
    for case, expected, actual in run_on_ranks(train, world_size, timeout=240)[0]:
        difference = (actual - expected).norm() / expected.norm()
        assert difference < 1e-6, (case, difference)
        ends.append(expected)
    if world_size == 2:  # and no setting was without effect: here all of them differ
        assert min((one - other).norm() for one, other in itertools.combinations(ends, 2)) > 1e-4
