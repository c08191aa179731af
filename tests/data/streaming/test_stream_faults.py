"""Streams and workers that break, hang or die, and what their threads leave behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
from data_roots import collate, train_row
from streams import LIMIT, FakeRows, epoch, make_loader, make_streams, numbered

from fanoise_lightning.data.batches.training import PairCollate
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.sources.hub_errors import HubError
from fanoise_lightning.data.streaming import reader
from fanoise_lightning.data.streaming.loader import StreamDataset, StreamLoader, StreamSampler
from fanoise_lightning.data.streaming.reader import StreamRow, TrainStream


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


def test_twenty_streams_are_opened_together() -> None:
    everyone = threading.Barrier(20, timeout=60)

    def rows() -> Any:
        everyone.wait()  # broken, unless all are being opened at one time
        yield from (train_row(number) for number in range(100))

    streams = [TrainStream(f"s{number}", FakeRows([rows]), 100) for number in range(20)]
    assert len(epoch(make_loader(streams, batch_size=40), 0, 1)) == 1
    assert not everyone.broken


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
