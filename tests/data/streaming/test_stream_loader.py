"""Batches from streams: the same for any number of workers, from any batch on, on every rank."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from data_roots import Recorder, collate, make_root, make_trainer, train_row, write_image
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import run_on_ranks
from streams import FakeRows, from_shards, numbered

from fanoise_lightning.data import MMEBDataModule
from fanoise_lightning.data.batches.loader import ResumableLoader
from fanoise_lightning.data.batches.refusals import Read
from fanoise_lightning.data.batches.skipped import SkipLimit, TooManySkippedError
from fanoise_lightning.data.batches.training import PairCollate
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.references import Reference, identity
from fanoise_lightning.data.sources.hub_errors import HubError
from fanoise_lightning.data.streaming import reader
from fanoise_lightning.data.streaming.loader import StreamDataset, StreamLoader, StreamSampler
from fanoise_lightning.data.streaming.reader import StreamRow, TrainStream

LIMIT = SkipLimit("training rows", 10)


def make_streams() -> list[TrainStream]:
    """14 + 9 rows, one shard each of 8 and 6, and 5 and 4."""
    return [numbered([8, 6], 1000, "a"), numbered([5, 4], 2000, "b")]


def make_loader(
    streams: list[TrainStream], workers: int = 0, store: ImageStore | None = None, **options: Any
) -> StreamLoader:
    data = StreamDataset(streams, store or ImageStore(), LIMIT)
    options = {"batch_size": 4, "seed": 1, "shuffle_block": 5, **options}
    return StreamLoader(
        data,
        sampler=StreamSampler(data, streams, **options),
        batch_size=None,
        collate_fn=PairCollate(collate),
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def epoch(loader: StreamLoader, number: int = 0, stop: int | None = None) -> list[list[int]]:
    """The numbers of the batches of an epoch, or of its first `stop`."""
    loader.sampler.set_epoch(number)
    batches = []
    for batch in loader:
        batches.append(batch["query"]["number"].tolist())
        if len(batches) == stop:
            break
    return batches


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


def stream_row(number: int, subset: int = 0, image: str | bytes = "") -> StreamRow:
    return StreamRow(
        subset, "rows.parquet", number, Reference(f"q{number}", image), Reference(f"t{number}", ""), []
    )


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    write_image(tmp_path / "good.png", 7)
    (tmp_path / "bad.png").write_bytes(b"no image")
    return ImageStore(ImageRoot(tmp_path))


def test_a_broken_pair_is_replaced_by_the_next_of_its_subset(store: ImageStore) -> None:
    data = StreamDataset([numbered([9], name="a"), numbered([9], name="b")], store, LIMIT)
    rows = [stream_row(0), stream_row(1, 1), stream_row(2, 0, "bad.png"), stream_row(3, 1), stream_row(4)]
    pairs, skipped, _ = data[rows]
    assert [pair.query.text for pair in pairs] == ["q0", "q1", "q4", "q3", "q4"]
    assert [pair.subset for pair in pairs] == ["a", "b", "a", "b", "a"]
    assert [pair.mask_pairs for pair in pairs] == [False, False, True, False, True]
    assert pairs[2].target_id == pairs[4].target_id == identity(Reference("t4", ""))
    ids = PairCollate(collate, mask=False)(Read(pairs, []))["target_id"].tolist()
    assert ids == [-1, -1, pairs[2].target_id, -1, pairs[2].target_id]
    assert len(skipped) == 1
    assert "subset `a`, `rows.parquet`, row 2: image `bad.png`" in skipped[0]


def test_a_broken_pair_alone_of_its_subset_is_replaced_by_another(store: ImageStore) -> None:
    data = StreamDataset([numbered([9], name="a"), numbered([9], name="b")], store, LIMIT)
    pairs, _, _ = data[[stream_row(0, 1), stream_row(1, 0, "bad.png"), stream_row(2, 1), stream_row(3, 1)]]
    assert [pair.query.text for pair in pairs] == ["q0", "q2", "q2", "q3"]


def test_too_many_broken_pairs_stop_the_stream(store: ImageStore) -> None:
    data = StreamDataset([numbered([9])], store, SkipLimit("training rows", 1))
    with pytest.raises(TooManySkippedError, match="2 training rows cannot be used"):
        data[[stream_row(n, 0, "bad.png") for n in range(3)]]
    limit = SkipLimit("training rows", 9, {"a": 1, "b": 2})
    data = StreamDataset([numbered([9], name="a"), numbered([9], name="b")], store, limit)
    rows = [stream_row(number, subset, "bad.png") for number, subset in enumerate((0, 1, 1, 0))]
    assert data[rows[:3]][0] == []
    with pytest.raises(TooManySkippedError, match=r"2 training rows of subset `a` cannot.*allows 1"):
        data[rows]


def test_images_come_from_the_root_or_the_rows(store: ImageStore, tmp_path: Path) -> None:
    write_image(tmp_path / "bytes.png", 9)
    data = StreamDataset([numbered([9])], store, LIMIT)
    rows = [
        stream_row(0, 0, "good.png"),
        stream_row(1, 0, (tmp_path / "bytes.png").read_bytes()),
        stream_row(2),
    ]
    assert PairCollate(collate)(data[rows])["query"]["grey"].tolist() == [7, 9, -1]


def test_pairs_of_one_target_have_one_id() -> None:
    streams = [numbered([9], name="a", mask_same_target=True), numbered([9], name="b")]
    rows = [stream_row(0), stream_row(0), stream_row(1), stream_row(0, 1)]
    pairs = StreamDataset(streams, ImageStore(), LIMIT)[rows].pairs
    ids = [pair.target_id for pair in pairs]
    assert ids[0] == ids[1] == ids[3] != ids[2] != -1
    assert [pair.mask_pairs for pair in pairs] == [True, True, True, False]


def test_images_that_are_nowhere_are_an_error_at_once(tmp_path: Path) -> None:
    stream = TrainStream("a", from_shards([[train_row(n, "images/X/1.jpg") for n in range(8)]]), 8)
    with pytest.raises(FileNotFoundError, match=r"subset `a`.*images/X/1\.jpg"):
        epoch(make_loader([stream]))
    with pytest.raises(FileNotFoundError, match="`a`"):
        epoch(make_loader([stream], store=ImageStore(ImageRoot(tmp_path))))


class Killed(StreamDataset):
    def __getitem__(self, rows: list[StreamRow]) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_an_error() -> None:
    streams = make_streams()
    data = Killed(streams, ImageStore(), LIMIT)
    sampler = StreamSampler(data, streams, batch_size=4, seed=1, shuffle_block=5)
    loader = StreamLoader(
        data, sampler=sampler, batch_size=None, collate_fn=PairCollate(collate), num_workers=1
    )
    with pytest.raises(RuntimeError, match="worker"):
        epoch(loader)


def broken() -> Any:
    yield from (train_row(number) for number in range(300))
    raise HubError("connection lost")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_breaks_is_an_error_in_training(workers: int) -> None:
    begin = time.monotonic()
    with pytest.raises(HubError, match="subset `s`: connection lost"):
        epoch(make_loader([TrainStream("s", FakeRows([broken]), 1000)], workers, shuffle_block=64))
    assert time.monotonic() - begin < 20


def reading(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"read {name}"]


def test_no_thread_outlives_the_iterator() -> None:
    endless = [numbered([2000], name="kept")]
    loader = make_loader(endless, shuffle_block=1)
    iterator = iter(loader)
    next(iterator)
    del iterator, loader
    for thread in reading("kept"):
        thread.join(5)
    assert not reading("kept")


def slow() -> Any:
    time.sleep(0.5)
    yield from (train_row(number) for number in range(100))


def test_twenty_streams_are_opened_together() -> None:
    streams = [TrainStream(f"s{number}", FakeRows([slow]), 100) for number in range(20)]
    loader = make_loader(streams, batch_size=40)
    begin = time.monotonic()
    assert len(epoch(loader, 0, 1)) == 1
    assert time.monotonic() - begin < 5  # one after the other, they would take 10 s


def test_a_stream_that_hangs_does_not_keep_the_process_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()

    def rows() -> Any:
        yield from (train_row(number) for number in range(64))
        forever.wait()

    loader = make_loader([TrainStream("hung", FakeRows([rows]), 1000)], shuffle_block=64)
    assert len(epoch(loader, 0, 3)) == 3
    assert [thread.daemon for thread in reading("hung")] == [True]
    monkeypatch.setattr(reader, "EXIT_TIMEOUT", 0.2)
    begin = time.monotonic()
    reader._close_readers()  # what the interpreter does at its end
    assert time.monotonic() - begin < 5
    forever.set()


def test_a_loader_that_is_made_anew_does_not_begin_with_the_same_rows() -> None:
    rows = [
        [row for batch in epoch(make_loader(make_streams()), number) for row in batch] for number in (0, 1)
    ]
    by_subset = [[[row for row in part if row // 1000 == base] for base in (1, 2)] for part in rows]
    assert all(first != second for first, second in zip(*by_subset))
