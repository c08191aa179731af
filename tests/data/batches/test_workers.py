"""What a worker process of the data modules' loaders does before it reads."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from fanoise_lightning.data.pairs import PairDataModule


class Probe(Dataset):
    """The private memory that a garbage collection costs in MB, and a random number."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[float, int]:
        before = private_memory()
        gc.collect()
        return private_memory() - before, np.random.randint(2**31)


def private_memory() -> float:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(rollup.split("\nPrivate_Dirty:")[1].split()[0]) / 1024


def probe() -> tuple[float, int]:
    options = {**PairDataModule("s.jsonl", num_workers=1)._loading(), "multiprocessing_context": "fork"}
    return next(iter(DataLoader(Probe(), batch_size=None, **options)))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of memory")
def test_a_collection_in_a_worker_copies_nothing_of_its_parent() -> None:
    ballast = [{number: str(number)} for number in range(200_000)]  # some 60 MB
    assert probe()[0] < 20
    assert len(ballast) == 200_000


def test_workers_of_different_ranks_are_seeded_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: dict[int, set[int]] = {}
    for rank in (0, 1):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        monkeypatch.setenv("PL_SEED_WORKERS", "1")
        numbers[rank] = {probe()[1] for _ in range(2)}
    assert [len(drawn) for drawn in numbers.values()] == [1, 1]
    assert numbers[0] != numbers[1]
