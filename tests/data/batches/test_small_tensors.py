"""Batches from a worker are those of the main process, though small tensors travel through its pipe."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader

from fanoise_lightning.data.datamodule import start_worker

TENSORS = {
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 4),
    "mask": torch.tensor([True, False]),
    "expanded": torch.arange(3.0).expand(2, 3),
    "transposed": torch.arange(6).view(2, 3).T,
    "half": torch.ones(2, dtype=torch.float16),
    "bfloat16": torch.ones(2, dtype=torch.bfloat16),
    "sparse": torch.eye(3).to_sparse(),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "large": torch.zeros(2**15),
    "pixels": torch.zeros(2**16 + 1, dtype=torch.uint8),
}
SHARED = {"bfloat16", "parameter", "large", "pixels"}


@dataclass(frozen=True)
class Frozen:
    ids: Tensor


class Named(dict[str, Tensor]):
    """A dict that cannot be built from a dict alone."""

    def __init__(self, name: str, ids: Tensor) -> None:
        super().__init__(ids=ids)
        self.name = name

    def __reduce__(self) -> Any:
        return Named, (self.name, self["ids"])


class Subclass(Tensor):
    pass


BATCH: dict[str, Any] = {
    **TENSORS,
    "chunks": [{"ids": torch.tensor([1, 2])}],
    "names": ["a", None],
    "n": 3,
    "frozen": Frozen(torch.tensor([3])),
    "named": Named("a", torch.tensor([4])),
    "packed": pack_sequence([torch.tensor([1, 2]), torch.tensor([3])]),
    "subclass": torch.ones(2).as_subclass(Subclass),
}


LOADER = DataLoader(
    [0],
    batch_size=None,
    collate_fn=lambda row: BATCH,
    num_workers=1,
    multiprocessing_context="fork",
    worker_init_fn=start_worker,
)


def test_a_batch_from_a_worker_is_as_it_was() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*not writable")
        found = next(iter(LOADER))
    assert list(found) == list(BATCH)
    for name, tensor in TENSORS.items():
        assert (found[name].dtype, found[name].layout) == (tensor.dtype, tensor.layout)
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].to_dense(), tensor.to_dense())
        if name != "sparse":
            assert found[name].is_shared() == (name in SHARED)
    assert torch.equal(found["chunks"][0]["ids"], torch.tensor([1, 2]))
    assert (found["names"], found["n"]) == (["a", None], 3)
    assert torch.equal(found["frozen"].ids, torch.tensor([3]))
    assert (found["named"].name, found["named"]["ids"].item()) == ("a", 4)
    assert isinstance(found["packed"], PackedSequence)
    assert torch.equal(found["packed"].data, BATCH["packed"].data)
    assert type(found["subclass"]) is Subclass
    found["mask"][0] = False  # its memory is the batch's own
