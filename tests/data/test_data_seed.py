"""`seed=None`: the order follows the seed of the run, on all ranks and after a resume."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_roots import Recorder, collate, make_root, make_trainer, train_row, write_rows
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import run_on_ranks

from fanoise_lightning.data import MMEBDataModule, PairDataModule
from fanoise_lightning.data import datamodule as module


@pytest.fixture(autouse=True)
def unseeded() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def fit(root: Path, ckpt_path: Path | None = None, callbacks: Any = (), **options: Any) -> list[list[int]]:
    recorder = Recorder()
    trainer = make_trainer(
        root,
        max_epochs=2,
        limit_val_batches=0,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
    )
    data = MMEBDataModule(root, batch_size=6, num_workers=0, **options)
    trainer.fit(recorder, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return recorder.trained


@pytest.mark.parametrize("streaming", [False, True])
def test_runs_of_other_seeds_have_other_orders(tmp_path: Path, streaming: bool) -> None:
    root = make_root(tmp_path / "root")
    runs = []
    for seed in (1, 2, 1):
        seed_everything(seed)
        runs.append(fit(root, streaming=streaming))
    assert runs[0] == runs[2] == fit(root, streaming=streaming, seed=1)
    assert runs[0] != runs[1]


def test_a_random_sample_does_not_follow_the_run(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    rows = []
    for seed in (1, 2):
        seed_everything(seed)
        run = fit(root, num_samples=6, sample="random")
        rows.append(sorted(number for batch in run for number in batch))
    assert rows[0] == rows[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_resumed_run_keeps_its_order_whatever_its_seed(
    tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_root(tmp_path / "root")
    drawn = iter(range(100, 200))
    monkeypatch.setattr(module, "run_seed", lambda default: next(drawn))  # a random one in each run
    every = ModelCheckpoint(root / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    unbroken = fit(root, callbacks=[every], streaming=streaming)
    assert fit(root, streaming=streaming) != unbroken
    for step in (4, 8):
        resumed = fit(root, root / "saved" / f"step={step}.ckpt", streaming=streaming)
        assert resumed == unbroken[step:]


def test_a_data_module_that_is_used_again_follows_the_new_run(tmp_path: Path) -> None:
    data = MMEBDataModule(make_root(tmp_path / "root"), batch_size=6, num_workers=0)
    runs = []
    for seed in (1, 2):
        seed_everything(seed)
        recorder = Recorder()
        make_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(recorder, datamodule=data)
        runs.append(recorder.trained)
    assert runs[0] != runs[1]


def order(rows: Path, **options: Any) -> tuple[list[int], list[int]]:
    """The numbers that are trained on and those that are held out."""
    data = PairDataModule(rows, num_workers=0, batch_size=4, collate=collate, **options)
    data.setup()
    trained = [number for batch in data.train_dataloader() for number in batch["query"]["number"].tolist()]
    return trained, data.eval_sets[0].candidates.tolist()


def test_the_order_of_pairs_follows_the_seed_of_the_run_and_their_split_does_not(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.jsonl", [train_row(number) for number in range(40)])
    os.environ.pop("PL_GLOBAL_SEED", None)
    default = order(path)
    runs = []
    for seed in (1, 2, 1):
        seed_everything(seed)
        runs.append(order(path))
        assert order(path, seed=7) == order(path, seed=7)
    assert runs[0] == runs[2]
    assert runs[0][0] != runs[1][0]
    assert sorted(runs[0][0]) == sorted(runs[1][0])
    assert runs[0][1] == runs[1][1] == default[1]
    assert default == order(path, seed=42)


def seed_of(rank: int, root: str) -> list[int]:
    from types import SimpleNamespace

    import torch.distributed as dist

    def broadcast(value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    os.environ["PL_GLOBAL_SEED"] = str(50 + rank)  # as after seed_everything(rank)
    data = MMEBDataModule(root)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(broadcast=broadcast))  # type: ignore[assignment]
    return [data.order_seed(), data.order_seed()]


@pytest.mark.slow
def test_all_ranks_take_the_seed_of_the_first(tmp_path: Path) -> None:
    assert run_on_ranks(seed_of, 2, str(tmp_path)) == [[50, 50], [50, 50]]


def test_a_seed_below_zero_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
        MMEBDataModule(tmp_path, seed=-1)
