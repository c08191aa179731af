"""Batches from streams: the same for any number of workers, from any batch on, on every rank."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from data_roots import Recorder, make_root, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import run_on_ranks
from streams import epoch, make_loader, make_streams, numbered

from fanoise_lightning.data import MMEBDataModule
from fanoise_lightning.data.batches.loader import ResumableLoader
from fanoise_lightning.data.streaming.loader import StreamLoader
from fanoise_lightning.data.streaming.reader import TrainStream


def saved(loader: StreamLoader) -> dict[str, Any]:
    """The state, through a file, as a checkpoint is read."""
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_an_epoch_sees_every_row_at_most_once_and_the_next_goes_on() -> None:
    loader = make_loader(make_streams())
    rows = [[row for batch in epoch(loader, number) for row in batch] for number in range(4)]
    assert [len(part) for part in rows] == [20] * 4  # of 23 rows, in batches of 4
    assert len(set(rows[0])) == 20
    # passes run on over the epochs: after k epochs no row was seen twice as often as another and once more
    counts = Counter(row for part in rows for row in part)
    for base, size in ((1000, 14), (2000, 9)):
        seen = [counts[base + row] for row in range(size)]
        assert max(seen) - min(seen) <= 1
    assert rows[0] != rows[1]


@pytest.mark.slow
def test_the_number_of_workers_does_not_matter() -> None:
    by_workers = []
    for workers in (0, 1, 2):
        loader = make_loader(make_streams(), workers)
        # an epoch that is broken off: what the workers had ahead must not be lost
        by_workers.append([epoch(loader), epoch(loader, 1, stop=2), epoch(loader, 2)])
    assert by_workers[0] == by_workers[1] == by_workers[2]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0), (0, 2), (2, 1)])
def test_resume_after_any_batch_equals_no_stop(before: int, after: int) -> None:
    whole = make_loader(make_streams())
    unbroken = [epoch(whole, number) for number in range(3)]
    for stop in range(1, len(unbroken[1]) + 1):
        first = make_loader(make_streams(), before)
        assert epoch(first) == unbroken[0]
        assert epoch(first, 1, stop) == unbroken[1][:stop]
        second = make_loader(make_streams(), after)
        second.load_state_dict(saved(first))
        assert epoch(second, 1) == unbroken[1][stop:]
        assert epoch(second, 2) == unbroken[2]
        if before or after:  # processes take their time
            break


class Streamed(MMEBDataModule):
    """The streams of `make_streams`, in a data module."""

    def read_train(self) -> list[TrainStream]:
        return make_streams()


def fit(root: Path, ckpt_path: Path | None = None, callbacks: Any = (), **options: Any) -> list[list[int]]:
    recorder = Recorder()
    trainer = make_trainer(
        root,
        **{"max_epochs": 3, "limit_val_batches": 0, **options},
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
    )
    data = Streamed(root, batch_size=4, num_workers=0)
    trainer.fit(recorder, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return recorder.trained


@pytest.mark.parametrize(
    "options", [{}, {"limit_val_batches": 1.0, "val_check_interval": 2}, {"limit_train_batches": 3}]
)
def test_lightning_resumes_a_stream_after_any_step(root: Path, options: dict[str, Any]) -> None:
    unbroken = fit(root, **options)
    every = ModelCheckpoint(root / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    assert fit(root, callbacks=[every], **options) == unbroken
    for seen in range(1, len(unbroken), 2):
        assert fit(root, root / "saved" / f"step={seen}.ckpt", **options) == unbroken[seen:], f"after {seen}"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_streaming_trains_on_the_rows_of_the_folder(tmp_path: Path, suffix: str) -> None:
    root = make_root(tmp_path / "root", suffix)
    epochs = []
    for streaming_rows in (False, True):
        recorder = Recorder()
        trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
        data = MMEBDataModule(root, batch_size=6, num_workers=0, streaming=streaming_rows)
        trainer.fit(recorder, datamodule=data)
        epochs.append(sorted(number for batch in recorder.trained for number in batch))
    assert epochs[0] == epochs[1] == [*range(1000, 1024), *range(2000, 2012)]


def on_two_ranks(rank: int, stop: int | None, state: dict[str, Any] | None, **options: Any) -> Any:
    streams = [numbered([8, 6, 7], 1000, "a"), numbered([11], 2000, "b")]
    loader = make_loader(streams, batch_size=2, rank=rank, world_size=2, shuffle_block=1, **options)
    if state is not None:
        loader.load_state_dict(state)
    return epoch(loader, 0, stop), saved(loader), len(loader)


def test_ranks_take_equal_parts_and_resume() -> None:
    whole = run_on_ranks(on_two_ranks, 2, None, None)
    batches = [result[0] for result in whole]
    assert [len(part) for part in batches] == [whole[0][2]] * 2 == [7, 7]  # 21 + 11 rows, less one of each
    rows = [row for part in batches for batch in part for row in batch]
    assert len(set(rows)) == len(rows)
    subsets = [[[row // 1000 for row in batch] for batch in part] for part in batches]
    assert subsets[0] == subsets[1]
    stopped = run_on_ranks(on_two_ranks, 2, 6, None)
    assert stopped[0][1] == stopped[1][1]  # the state of every rank is in that of rank 0
    positions = stopped[0][1]["streams"]["positions"]
    assert positions[0] != positions[1]
    resumed = run_on_ranks(on_two_ranks, 2, None, stopped[0][1])
    assert [result[0] for result in resumed] == [part[6:] for part in batches]


def test_a_checkpoint_of_something_else_is_refused() -> None:
    loader = make_loader(make_streams())
    epoch(loader, 0, 2)
    state = saved(loader)
    for options, message in (
        ({"world_size": 2, "batch_size": 2}, "written by 1 processes, this run has 2"),
        ({"seed": 2}, "written with seed=1, this run has 2"),
        ({"shuffle_block": 6}, "written with shuffle_block=5, this run has 6"),
    ):
        with pytest.raises(ValueError, match=message):
            make_loader(make_streams(), **options).load_state_dict(state)
    for streams, message in (
        ([numbered([8, 6, 1], 1000, "a"), make_streams()[1]], r"\[\['a', 14, 2\].* has \[\['a', 15, 3\]"),
        (make_streams()[::-1], r"subsets=\[\['a', 14, 2\].* has \[\['b', 9, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make_loader(streams).load_state_dict(state)
    old = {**state, "streams": {**state["streams"], "positions": [[0] * 14]}}
    with pytest.raises(ValueError, match="14 numbers for the positions of 2 streams, expected 8 for each"):
        make_loader(make_streams()).load_state_dict(old)
    with pytest.raises(ValueError, match="without streaming"):
        make_loader(make_streams()).load_state_dict({"epoch": 0, "batch": 1, "batches": 5})
    with pytest.raises(ValueError, match="with streaming"):
        ResumableLoader([]).load_state_dict(state)


def test_a_stream_that_is_too_short_is_reported_once_an_epoch() -> None:
    loader = make_loader([numbered([5], 1000, "a", num_rows=12), numbered([12], 2000, "b")])
    with pytest.warns(UserWarning, match="epoch 0") as caught:
        rows = epoch(loader)
    lines = [str(warning.message) for warning in caught]
    assert len(lines) == 1
    assert lines[0].startswith("epoch 0: subset `a` ended after 5 of the 12 rows declared")
    assert "(2 times)" in lines[0]
    counts = Counter(row for batch in rows for row in batch)
    assert {counts[1000 + row] for row in range(5)} == {2, 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epoch(make_loader(make_streams()))


def test_fewer_rows_than_a_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="subset `b` has 9 rows, fewer than a global batch of 10"):
        make_loader(make_streams(), batch_size=10, batch_subsets="single")
    with pytest.raises(ValueError, match="`shuffle_block` must be at least 1, got 0"):
        make_loader(make_streams(), shuffle_block=0)


def test_batches_are_mixed_as_of_rows_with_an_index() -> None:
    for mode, distinct in (("single", {1}), (2, {1, 2}), ("mixed", {1, 2})):
        batches = epoch(
            make_loader([numbered([40], 1000, "a"), numbered([40], 2000, "b")], batch_subsets=mode)
        )
        assert len(batches) == 20
        assert {len({row // 1000 for row in batch}) for batch in batches} == distinct
        if mode == 2:
            assert all(batch[0] // 1000 == batch[1] // 1000 for batch in batches)


def test_a_loader_that_is_made_anew_does_not_begin_with_the_same_rows() -> None:
    rows = [
        [row for batch in epoch(make_loader(make_streams()), number) for row in batch] for number in (0, 1)
    ]
    by_subset = [[[row for row in part if row // 1000 == base] for base in (1, 2)] for part in rows]
    assert all(first != second for first, second in zip(*by_subset))
