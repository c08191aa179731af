"""FSDP2 through Lightning's ModelParallelStrategy, on two processes of the CPU, against one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from processes import run_on_ranks
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from fanoise_lightning import ContrastiveModule, Encoder, InfoNCE, OpenClipEncoder, Sample
from fanoise_lightning.encoders.pretrained import PretrainedEncoder
from fanoise_lightning.encoders.source_weights import digests
from fanoise_lightning.training.sharding import repeated_blocks
from fanoise_lightning.training.trained_only import LEFT_OUT

WIDTH = 16


class Block(nn.Module):
    """A layer that trains, or a frozen one of another dtype with an adapter that trains."""

    def __init__(self, adapter: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.adapter = nn.Linear(WIDTH, WIDTH) if adapter else None
        if adapter:
            self.layer.double().requires_grad_(False)  # and not half, which would blur the comparison

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.to(self.layer.weight.dtype)).to(x.dtype)
        return x + torch.tanh(y if self.adapter is None else y + self.adapter(x))


class Tower(Encoder):
    embedding_dim = 6

    def __init__(self, adapter: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(Block(adapter) for _ in range(3))
        self.head = nn.Linear(WIDTH, 6)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def collate(self, samples: list[Sample]) -> dict[str, Tensor]:
        return {"x": torch.tensor([[float(len(sample.text or ""))] * 4 for sample in samples])}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x) + self.scale * x[:, :6]


class Stored(PretrainedEncoder):
    """A tower with an adapter; its weights come from a file."""

    embedding_dim = 6

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.tower = Tower(adapter=True)
        self.tower.load_state_dict(torch.load(path))
        self.remember(digests(self.tower))
        self.collate = self.tower.collate

    def forward(self, x: Tensor) -> Tensor:
        return self.tower(x)


class Batches(DataLoader):
    """This rank's rows of eight batches of eight pairs; goes on where a checkpoint was written."""

    done = 0

    def __init__(self, rank: int, ranks: int, chunks: bool) -> None:
        rows = torch.randn(8, 2, 8, 4, generator=torch.Generator().manual_seed(1))
        sides = [dict(zip(("query", "target"), pair)) for pair in rows.chunk(ranks, dim=2)[rank]]
        batches = [
            {side: [{"x": c} for c in x.split(2)] if chunks else {"x": x} for side, x in batch.items()}
            for batch in sides
        ]
        super().__init__(batches, batch_size=None)

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]

    def __iter__(self):
        for batch in self.dataset[self.done :]:
            self.done += 1
            yield batch


def fit(
    rank: int,
    ranks: int,
    adapter: bool = False,
    chunk_size: int | None = None,
    stored: str | None = None,
    **options,
) -> dict[str, Tensor]:
    """Three optimiser steps; the weights, whole."""
    module = ContrastiveModule(
        Stored(stored) if stored else Tower(adapter),
        InfoNCE(0.2, learnable_temperature=True),
        optimizer=partial(torch.optim.AdamW, lr=0.01),
        chunk_size=chunk_size,
    )
    ckpt_path = options.pop("ckpt_path", None)
    shards = options.pop("shards", False)  # whether a checkpoint is a folder of shards
    if ranks > 1:
        options.setdefault("strategy", ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=shards))
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "devices": ranks,
            "max_steps": 3,
            "accumulate_grad_batches": 2,
            "gradient_clip_val": 0.5,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in options.get("callbacks", [])),
            "use_distributed_sampler": False,
            **options,
        }
    )
    trainer.fit(module, Batches(rank, ranks, chunk_size is not None), ckpt_path=ckpt_path)
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    assert len(sharded) == (0 if options.get("strategy") in (None, "ddp") else 4)  # the blocks and the rest
    return {name: whole(value) for name, value in module.state_dict().items()}


@cache
def fit_on_one(adapter: bool, chunk_size: int | None) -> dict[str, Tensor]:
    """The weights of one process: what several tests compare with."""
    return fit(0, 1, adapter, chunk_size)


def whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def fit_on_two(**options) -> dict[str, Tensor]:
    first, second = run_on_ranks(lambda rank: fit(rank, 2, **options), 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    return first


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("adapter", [False, True])
def test_two_shards_train_like_one_process(adapter, chunk_size):
    options = {"adapter": adapter, "chunk_size": chunk_size}
    assert_close(fit_on_two(**options), fit_on_one(**options))


class Embed(Callback):
    """Embeds in the middle of the training."""

    def __init__(self) -> None:
        self.vectors: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.vectors.append(pl_module.encode(["a", "few", "words"], batch_size=2))


def test_embedding_between_steps_does_not_disturb_a_sharded_training():
    assert_close(fit_on_two(callbacks=[Embed()]), fit_on_one(adapter=False, chunk_size=None))


class SaveAndStop(ModelCheckpoint):
    """Writes a checkpoint after so many batches, and ends the run as a crash would."""

    def __init__(self, folder: Path, batches: int) -> None:
        super().__init__(folder)
        self.batches = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            trainer.save_checkpoint(Path(self.dirpath) / "saved.ckpt")
            trainer.should_stop = True


@pytest.mark.parametrize("after", [2, 3])  # at a step, and between two batches of one
def test_a_sharded_run_goes_on_from_its_checkpoint(tmp_path, after):
    fit_on_two(callbacks=[SaveAndStop(tmp_path, after)])
    resumed = fit_on_two(ckpt_path=tmp_path / "saved.ckpt")
    assert_close(resumed, fit_on_one(adapter=False, chunk_size=None))


def test_the_checkpoint_of_a_sharded_run_is_that_of_any_other(tmp_path):
    weights = fit_on_two(callbacks=[SaveAndStop(tmp_path, 6)])
    checkpoint = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert_close(checkpoint["state_dict"], weights)
    Tower().load_state_dict({k.removeprefix("encoder."): v for k, v in weights.items() if "encoder." in k})


@pytest.fixture
def stored(tmp_path) -> str:
    torch.save(Tower(adapter=True).state_dict(), tmp_path / "tower.pt")
    return str(tmp_path / "tower.pt")


FROZEN = {f"encoder.tower.blocks.{block}.layer.weight" for block in range(3)}


@pytest.mark.parametrize("strategy", ["ddp", None])
def test_two_ranks_resume_from_a_checkpoint_of_what_is_trained(stored, tmp_path, strategy):
    options = {"stored": stored} | ({"strategy": strategy} if strategy else {})
    expected = fit(0, 1, stored=stored)
    fit_on_two(**options, callbacks=[SaveAndStop(tmp_path, 3)])
    checkpoint = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert checkpoint[LEFT_OUT].keys() == FROZEN == expected.keys() - checkpoint["state_dict"].keys()
    assert_close(fit_on_two(**options, ckpt_path=tmp_path / "saved.ckpt"), expected)
    assert_close(fit(0, 1, stored=stored, ckpt_path=tmp_path / "saved.ckpt"), expected)


def test_a_checkpoint_in_shards_is_whole(stored, tmp_path):
    fit_on_two(stored=stored, shards=True, callbacks=[SaveAndStop(tmp_path, 2)])
    assert LEFT_OUT not in torch.load(tmp_path / "saved.ckpt" / "meta.pt", weights_only=True)
    resumed = fit_on_two(stored=stored, shards=True, ckpt_path=tmp_path / "saved.ckpt")
    assert_close(resumed, fit(0, 1, stored=stored))


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint["state_dict"])
    torch.save(checkpoint, path)


TRAINED = "encoder.tower.head.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(TRAINED), rf"do not fit the module: it lacks \({TRAINED}\)"),
        (lambda state: state.update(other=state[TRAINED]), r"has more than the module \(other\)"),
    ],
    ids=["missing", "unexpected"],
)
def test_shards_refuse_a_checkpoint_of_other_weights(stored, tmp_path, change, message):
    fit_on_two(stored=stored, callbacks=[SaveAndStop(tmp_path, 2)])
    edit(tmp_path / "saved.ckpt", change)
    with pytest.raises(RuntimeError, match=message):
        fit_on_two(stored=stored, ckpt_path=tmp_path / "saved.ckpt")


def test_shards_refuse_an_optimiser_whose_states_are_numbered_otherwise(stored, tmp_path):
    fit(0, 1, stored=stored, callbacks=[SaveAndStop(tmp_path, 2)])
    with pytest.raises(RuntimeError, match="numbered otherwise than those of sharded weights"):
        fit_on_two(stored=stored, ckpt_path=tmp_path / "saved.ckpt")


def test_shards_refuse_frozen_weights_that_have_changed(stored, tmp_path):
    fit_on_two(stored=stored, callbacks=[SaveAndStop(tmp_path, 2)])
    weights = torch.load(stored)
    weights["blocks.1.layer.weight"][15, 3] += 1e-9  # in the second shard
    torch.save(weights, stored)
    with pytest.raises(RuntimeError, match=r"1 of the 3 frozen weights .*: encoder\.tower\.blocks\.1\.layer"):
        fit_on_two(stored=stored, ckpt_path=tmp_path / "saved.ckpt")


def test_shards_miss_a_weight_of_a_whole_checkpoint_as_before(tmp_path):
    fit(0, 1, callbacks=[SaveAndStop(tmp_path, 2)])
    edit(tmp_path / "saved.ckpt", lambda state: state.pop("encoder.head.weight"))
    with pytest.raises(RuntimeError, match=r"contains a key 'encoder\.head\.weight' that does not exist"):
        fit_on_two(ckpt_path=tmp_path / "saved.ckpt")


def test_the_towers_blocks_are_sharded_one_by_one(tiny_clip):
    encoder = OpenClipEncoder(tiny_clip)
    expected = [*encoder.clip.visual.transformer.resblocks, *encoder.clip.transformer.resblocks]
    found = repeated_blocks(encoder)
    assert len(found) == len(expected) == 4
    assert all(any(block is other for other in expected) for block in found)


def test_a_mesh_that_splits_more_than_the_data_is_refused():
    def on_rank(rank: int) -> None:
        # by default a node is one tensor-parallel copy
        fit(0, 1, devices=2, strategy=ModelParallelStrategy())

    with pytest.raises(
        RuntimeError, match=r"ModelParallelStrategy\(data_parallel_size=2, tensor_parallel_size=1"
    ):
        run_on_ranks(on_rank, 2)
