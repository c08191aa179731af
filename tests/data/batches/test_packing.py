"""Batches from a worker are those of the main process, though small tensors travel through its pipe."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader

from fanoise_lightning.data.batches.packing import Packing, _Small, unpack

TENSORS = {
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 4),
    "mask": torch.tensor([True, False]),
    "expanded": torch.arange(3.0).expand(2, 3),
    "transposed": torch.arange(6).view(2, 3).T,
    "half": torch.ones(2, dtype=torch.float16),
    "bfloat16": torch.ones(2, dtype=torch.bfloat16),
    "large": torch.zeros(2**15),
    "pixels": torch.zeros(2**16 + 1, dtype=torch.uint8),
}
BATCH = {**TENSORS, "chunks": [{"ids": torch.tensor([1, 2])}], "names": ["a", None], "n": 3}


def from_worker(collate: Any) -> Any:
    loader = DataLoader(
        [0], batch_size=None, collate_fn=collate, num_workers=1, multiprocessing_context="fork"
    )
    return next(iter(loader))


def test_a_batch_from_a_worker_is_unpacked_as_it_was() -> None:
    packed = from_worker(Packing(lambda row: BATCH))
    kept = {name for name in TENSORS if isinstance(packed[name], torch.Tensor)}
    assert kept == {"bfloat16", "large", "pixels"}
    assert isinstance(packed["chunks"][0]["ids"], _Small)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of memory that must not be written
        found = unpack(packed)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)
    assert torch.equal(found["chunks"][0]["ids"], torch.tensor([1, 2]))
    assert (found["names"], found["n"], list(found)) == (["a", None], 3, list(BATCH))
    found["mask"][0] = False  # its memory is the batch's own


def test_without_a_worker_nothing_is_packed() -> None:
    batch = Packing(lambda row: BATCH)(0)
    assert all(batch[name] is tensor for name, tensor in BATCH.items())
    assert unpack(batch)["large"] is BATCH["large"]
