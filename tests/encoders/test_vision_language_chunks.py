"""GradCache with the families: rows with and without images, LoRA dropout, gradient checkpointing."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny_models import BUILDERS, make_image

from fanoise_lightning import ContrastiveModule, InfoNCE, Pair, Sample
from fanoise_lightning.data.batches.refusals import Read
from fanoise_lightning.data.batches.training import PairCollate
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder
from fanoise_lightning.training.embedding import embed_sides

PAIRS = [
    Pair(Sample("a red apple"), Sample(image=make_image(50, 90, 1))),
    Pair(Sample("what is it", make_image()), Sample("a cat")),
    Pair(
        Sample(image=make_image(70, 40, 2)), Sample("something of many words that is longer than the others")
    ),
    Pair(Sample("a house", make_image(40, 40, 3)), Sample("this", make_image(60, 60, 4))),
    Pair(Sample("no image here"), Sample("nor here")),
]


def collate_in_double(module: ContrastiveModule, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Without the rounding of float32, but for parts that an encoder always runs in it."""
    inputs = module.collate(samples)
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


def gradients(
    module: ContrastiveModule, chunk_size: int | None, collate_size: int | None
) -> list[torch.Tensor]:
    module.chunk_size = chunk_size
    batch = PairCollate(partial(collate_in_double, module), collate_size)(Read(PAIRS, []))
    sides = [batch["query"], batch["target"]]
    if collate_size and not chunk_size:  # the reference: the same chunks, with one graph over all of them
        embedded = [torch.cat([module(chunk) for chunk in side]) for side in sides]
    else:
        embedded = embed_sides(module, module.encoder, sides, module.chunk_size)
    module.zero_grad()
    module.loss(*embedded).backward()
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", sorted(BUILDERS))
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_chunks_have_the_gradients_of_the_whole_batch(tiny, family, dropout):
    folder = tiny(family)
    torch.manual_seed(0)
    encoder = VisionLanguageEncoder(folder, lora={"r": 4, "dropout": dropout}, gradient_checkpointing=True)
    for name, parameter in encoder.named_parameters():  # LoRA starts at zero: half of the gradients too
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    module = ContrastiveModule(encoder, InfoNCE(0.1)).double().train()

    def run(chunk_size: int | None, collate_size: int | None) -> torch.Tensor:
        torch.manual_seed(1)
        found = gradients(module, chunk_size, collate_size)
        assert found
        return torch.cat([gradient.flatten() for gradient in found])

    # the same chunks under one graph draw the same dropout
    actual, expected = run(2, 2), run(None, 2)
    assert (actual - expected).norm() / expected.norm() < 1e-12
    if not dropout:
        # Padded otherwise, an encoder with parts in float32 rounds otherwise: Phi's embeddings by 2e-6, which
        # the temperature and a random network make ten times as much.
        expected = run(None, None)
        assert (actual - expected).norm() / expected.norm() < 1e-4
