"""Sharded ranks whose batches hold different things, against one process with the batch of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import tiny_two_towers
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from processes import run_on_ranks
from tiny_models import BUILDERS, make_image
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader

from fanoise_lightning import ContrastiveModule, Encoder, InfoNCE, OpenClipEncoder, Pair, Sample
from fanoise_lightning.data.batches.refusals import Read
from fanoise_lightning.data.batches.training import PairCollate
from fanoise_lightning.distributed import all_reduce_sum
from fanoise_lightning.encoders.two_tower import TwoTowerEncoder
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder
from fanoise_lightning.training.embedding import embed_sides
from fanoise_lightning.training.sharding import shard

A, B, C, D, E, F = (Sample(text) for text in ("a cat", "a much longer text", "c", "dog", "e", "fish"))
P, Q, R = (Sample(image=make_image(50 + 9 * i, 60, i)) for i in range(3))
X, Y = (Sample(text, make_image(40, 70 + 9 * i, 3 + i)) for i, text in enumerate(("what", "which one")))

# the pairs of rank 0 and of rank 1
BATCHES = {
    "texts alone on one rank's targets": ([Pair(A, P), Pair(B, Q)], [Pair(C, D), Pair(E, F)]),
    "images alone on one rank": ([Pair(P, Q), Pair(Q, R)], [Pair(A, B), Pair(C, D)]),
    "text and image against text": ([Pair(X, A), Pair(Y, B)], [Pair(C, D), Pair(E, F)]),
    "each rank lacks what the other has": ([Pair(A, P), Pair(B, Q)], [Pair(R, C), Pair(X, D)]),
    "negatives on one rank": ([Pair(A, P, (B, Q, C)), Pair(X, D)], [Pair(C, R), Pair(E, F)]),
    "unequal negatives": ([Pair(A, P, (B, X, R)), Pair(B, Q)], [Pair(C, D), Pair(E, F, (A,))]),
    "texts alone on both": ([Pair(A, B), Pair(C, D)], [Pair(D, E), Pair(F, A)]),
    "one rank in front": ([Pair(A, P), Pair(Q, B), Pair(R, C)], [Pair(A, C), Pair(D, E), Pair(X, Y)]),
}


@pytest.fixture(scope="session")
def encoder_of(tiny, tiny_clip) -> Callable[[str], Encoder]:
    def build(name: str) -> Encoder:
        torch.manual_seed(0)
        if name == "open_clip":
            return OpenClipEncoder(tiny_clip)
        return (TwoTowerEncoder if name in tiny_two_towers.BUILDERS else VisionLanguageEncoder)(tiny(name))

    return build


def step(module: ContrastiveModule, pairs: list[Pair], chunk_size: int | None = None) -> dict[str, Tensor]:
    """The loss and every gradient."""
    module.chunk_size = chunk_size
    batch = PairCollate(module.collate, chunk_size)(Read(pairs, []))
    module.zero_grad()
    sides = [batch[side] for side in ("query", "target", "negatives") if side in batch]
    loss = module.loss(*embed_sides(module, module.encoder, sides, module.chunk_size))
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def sharded(module: ContrastiveModule) -> ContrastiveModule:
    names = ("data_parallel", "tensor_parallel")
    shard(module.encoder, init_device_mesh("cpu", (2, 1), mesh_dim_names=names))
    return module


def part(x: Tensor, rank: int) -> Tensor:
    """What FSDP2 leaves on this rank of two."""
    return [*x.chunk(2), x[:0]][rank]


def distance(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all gradients together, relative to their length."""
    assert actual.keys() == expected.keys()  # and those without a gradient have none
    one, other = (torch.cat([part[name].flatten() for name in expected]) for part in (actual, expected))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("family", ["qwen2_vl", "clip", "open_clip"])
def test_unequal_batches_have_the_loss_and_the_gradients_of_one_process(encoder_of, family):
    module = ContrastiveModule(encoder_of(family), InfoNCE(0.2))
    expected = {name: step(module, first + second) for name, (first, second) in BATCHES.items()}
    cases = [
        (name, chunk_size)
        for name in BATCHES
        for chunk_size in ((None, 2) if "negatives" in name else (None,))
    ]

    def on_rank(rank: int) -> list[tuple[Tensor, float]]:
        sharded(module)
        found = []
        for name, chunk_size in cases:
            gradients = step(module, BATCHES[name][rank], chunk_size)
            loss = all_reduce_sum(gradients.pop("loss")) / 2
            of_one = {n: part(x, rank) for n, x in expected[name].items() if n != "loss"}
            found.append((loss, distance({n: x.to_local() for n, x in gradients.items()}, of_one)))
        return found

    for ranks in run_on_ranks(on_rank, 2, timeout=20):
        for (name, chunk_size), (loss, error) in zip(cases, ranks, strict=True):
            torch.testing.assert_close(loss, expected[name]["loss"], msg=lambda m, n=name: f"{n}: {m}")
            assert error < 2e-6, (name, chunk_size)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_loss_of_this_rank_alone_waits_for_no_other_ranks_negatives(encoder_of, chunk_size):
    module = ContrastiveModule(encoder_of("open_clip"), InfoNCE(0.2, gather=False))
    pairs = BATCHES["negatives on one rank"]
    first, second = (step(module, own) for own in pairs)
    mean = {name: (first[name] + second[name]) / 2 for name in first if name != "loss"}

    def on_rank(rank: int) -> float:
        found = step(sharded(module), pairs[rank], chunk_size)
        del found["loss"]
        return distance(
            {n: x.to_local() for n, x in found.items()}, {n: part(x, rank) for n, x in mean.items()}
        )

    assert max(run_on_ranks(on_rank, 2, timeout=20)) < 2e-6


def test_batches_of_different_sizes_are_the_same_error_on_every_rank(encoder_of):
    module = ContrastiveModule(encoder_of("clip"), InfoNCE(0.2))

    def on_rank(rank: int) -> None:
        sharded(module)
        for chunk_size in (None, 2):
            with pytest.raises(ValueError, match="got 2 on rank 0, 5 on rank 1"):
                step(module, [[Pair(A, P), Pair(B, Q)], [Pair(C, D)] * 5][rank], chunk_size)

    run_on_ranks(on_rank, 2, timeout=20)


SAMPLES = [A, P, X, B, Q]


@pytest.mark.parametrize("family", ["qwen2_vl", "clip"])
def test_ranks_evaluate_what_the_others_do_not_have(encoder_of, family):
    module = ContrastiveModule(encoder_of(family).eval())
    everything = module.encode(SAMPLES)

    def predicted(samples: list[Sample]) -> Tensor:
        inputs = module.collate(samples) if samples else {}
        return module.predict_step({"index": torch.arange(len(samples)), "inputs": inputs}, 0)["embeddings"]

    def on_rank(rank: int) -> list[Tensor]:
        sharded(module)
        with torch.inference_mode():
            found = [
                predicted([[A, P, X], []][rank]),
                predicted([[B], [Q]][rank]),
                predicted([]),  # on both
                module.encode([SAMPLES, [A]][rank], batch_size=2),
                module.encode([[], [P]][rank]),
            ]
        step(module, [[Pair(A, P), Pair(B, Q)], [Pair(C, D), Pair(E, F)]][rank])  # trains as well afterwards
        return found

    rows = [[[0, 1, 2], [3], [], [0, 1, 2, 3, 4], []], [[], [4], [], [0], [1]]]
    for expected, found in zip(rows, run_on_ranks(on_rank, 2, timeout=20)):
        for numbers, vectors in zip(expected, found, strict=True):
            torch.testing.assert_close(vectors, everything[numbers], rtol=1e-5, atol=1e-6)


def test_batch_norm_does_not_learn_from_the_added_image():
    module = ContrastiveModule(OpenClipEncoder("emoji-resnet"), InfoNCE(0.2)).train()

    def on_rank(rank: int) -> list[Tensor]:
        before = {name: value.clone() for name, value in module.named_buffers() if "running_" in name}
        assert before
        step(sharded(module), [[Pair(A, P), Pair(B, Q)], [Pair(C, D), Pair(E, F)]][rank])
        assert all(part.training for part in module.modules())
        return [
            x for name, x in module.named_buffers() if name in before and not torch.equal(x, before[name])
        ]

    learned, unchanged = run_on_ranks(on_rank, 2, timeout=20)
    assert learned
    assert not unchanged


@pytest.mark.parametrize("family", [*BUILDERS, *tiny_two_towers.BUILDERS, "open_clip"])
def test_a_row_that_is_added_leaves_the_others_as_they_are(encoder_of, family):
    encoder = encoder_of(family).eval()
    images, texts = encoder.collate([P, X, Q]), encoder.collate([A, B, C])
    every = encoder.parts(encoder.collate([X]))
    assert all(every)
    assert not any(encoder.parts({}))
    with torch.no_grad():
        for batch in (texts, images):
            missing = tuple(not part for part in encoder.parts(batch))
            longer = encoder.add_row(batch, missing) if any(missing) else batch
            assert encoder.parts(longer) == every
            found = encoder(**longer)
            assert len(found) == 3 + any(missing)
            torch.testing.assert_close(found[:3], encoder(**batch), rtol=1e-4, atol=1e-5)
        alone = encoder.add_row({}, every)
        assert encoder.parts(alone) == every
        assert encoder(**alone).shape == (1, encoder.embedding_dim)


def test_a_process_alone_adds_no_rows_and_asks_nobody(encoder_of, monkeypatch):
    module = ContrastiveModule(encoder_of("clip"), InfoNCE(0.2))
    for name in ("training.encode.largest", "training.embedding.same_calls", "training.embedding.same_parts"):
        monkeypatch.setattr(f"fanoise_lightning.{name}", None)
    assert step(module, [Pair(A, P), Pair(B, C)], chunk_size=1)
    assert module.encode([A, P], batch_size=1).shape == (2, 24)


def fit(
    module: ContrastiveModule, rank: int, ranks: int, batches: Sequence[str], find_unused: bool
) -> dict[str, Tensor]:
    """The weights after a step for each batch: this rank's part of it, or all of it on a single one."""
    parts = [BATCHES[name] for name in batches]
    pairs = [part[rank] if ranks > 1 else part[0] + part[1] for part in parts]
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(find_unused_parameters=find_unused, bucket_cap_mb=0.004)
        if ranks > 1
        else "auto",
        max_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    collate = PairCollate(module.collate)
    trainer.fit(module, DataLoader([collate(Read(some, [])) for some in pairs], batch_size=None))
    return {name: value.clone() for name, value in module.state_dict().items()}


# LLaVA never uses the last layer of its image tower. SigLIP's image tower comes first in DDP's order, and
# next to it the temperature, whose gradient comes before all that the loss exchanges.
@pytest.mark.parametrize(
    ("family", "find_unused"), [("llava_next", False), ("siglip", False), ("siglip", True)]
)
def test_ddp_trains_with_parts_that_a_batch_does_not_use(encoder_of, family, find_unused, monkeypatch):
    monkeypatch.setattr(torch.distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 100)
    batches = [*list(BATCHES)[:4], "texts alone on both"]
    # what no rank used stays as it is if DDP searches, and else goes on with its momentum
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9 if find_unused else 0)
    module = ContrastiveModule(encoder_of(family), InfoNCE(0.2, learnable_temperature=True), optimizer)

    def on_rank(rank: int) -> dict[str, Tensor]:
        monkeypatch.setenv("LOCAL_RANK", str(rank))  # as torchrun says it
        monkeypatch.setenv("WORLD_SIZE", "2")
        return fit(module, rank, 2, batches, find_unused)

    first, second = run_on_ranks(on_rank, 2, timeout=20)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    expected = fit(module, 0, 1, batches, find_unused)
    assert (
        distance({n: first[n] - start[n] for n in start}, {n: expected[n] - start[n] for n in start}) < 1e-4
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
