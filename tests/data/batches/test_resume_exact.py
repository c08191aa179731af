"""A run that is stopped after any batch and resumed sees the rows of the unbroken run, in every mixture."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from data_roots import train_row
from streams import from_shards

from fanoise_lightning.data.batches.loader import ResumableLoader
from fanoise_lightning.data.batches.mixing import MixingSampler
from fanoise_lightning.data.batches.skipped import SkipLimit
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.streaming.loader import StreamDataset, StreamLoader, StreamSampler
from fanoise_lightning.data.streaming.reader import TrainStream

EPOCHS = 3
SIZES = {"a": [9, 7], "b": [16], "c": [5, 5, 6]}  # the shards of three subsets of 16 rows
MIXTURES: list[dict[str, Any]] = [
    {"batch_subsets": mode, "sampling": sampling}
    for mode in ("mixed", "single", 2)
    for sampling in ("proportional", {"a": 1, "b": 5, "c": 1}, {"a": 1, "b": 1, "c": 0})
]


def make_streams(empty: bool = False) -> list[TrainStream]:
    """Rows numbered from 0 on; with `empty`, every fifth is skipped, because its target is empty."""
    streams, number = [], 0
    for name, sizes in SIZES.items():
        shards = []
        for size in sizes:
            rows = [train_row(row) for row in range(number, number + size)]
            shards.append(
                [{**row, "pos_text": ""} if empty and at % 5 == 0 else row for at, row in enumerate(rows)]
            )
            number += size
        streams.append(TrainStream(name, from_shards(shards), sum(sizes)))
    return streams


def by_row(read: Any) -> dict[str, list[int]]:
    return {"query": [int(pair.query.text[1:]) for pair in read[0]], "skipped": read[1]}


class Numbers:
    """Rows by index: a number for each."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, batch: Any) -> Any:
        return {"query": [16 * subset + row for subset, row in batch.rows]}


def make_loader(
    streaming: bool, rank: int, world_size: int, workers: int = 0, empty: bool = False, **mixture: Any
) -> ResumableLoader:
    options = {"batch_size": 4 // world_size, "seed": 3, "rank": rank, "world_size": world_size, **mixture}
    if mixture.get("batch_subsets") == 2 and world_size == 2:
        options["batch_subsets"] = 1
    loading: dict[str, Any] = {"batch_size": None, "num_workers": workers, "persistent_workers": workers > 0}
    if not streaming:
        names = list(SIZES)
        sampler = MixingSampler(Numbers(), [16] * 3, names, **options)  # type: ignore[arg-type]
        return ResumableLoader(Numbers(), sampler=sampler, collate_fn=dict, **loading)  # type: ignore[arg-type]
    streams = make_streams(empty)
    data = StreamDataset(streams, ImageStore(), SkipLimit("training rows", 0))
    rows = StreamSampler(data, streams, shuffle_block=5, **options)
    return StreamLoader(data, sampler=rows, collate_fn=by_row, **loading)


def run(
    loaders: list[ResumableLoader],
    first: int = 0,
    last: int = EPOCHS,
    limit: int | None = None,
    skip: int = 0,
) -> tuple[list[Any], list[Any]]:
    """The batches of all ranks side by side, and the state of all of them after each."""
    batches, states = [], []
    for epoch in range(first, last):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        number = skip if epoch == first else 0
        for together in zip(*loaders):
            batches.append([batch["query"] for batch in together])
            states.append((epoch, number := number + 1, join([loader.state_dict() for loader in loaders])))
            if number == limit:
                break
    return batches, states


def join(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state that the ranks write together."""
    if "streams" not in states[0]:
        return states[0]
    positions = [state["streams"]["positions"][0] for state in states]
    return {**states[0], "streams": {**states[0]["streams"], "positions": positions}}


def check_every_stop(world_size: int = 1, limit: int | None = None, **options: Any) -> None:
    def make() -> list[ResumableLoader]:
        return [make_loader(rank=rank, world_size=world_size, **options) for rank in range(world_size)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # passes are shorter than told, with empty rows
        unbroken, states = run(make(), limit=limit)
        assert len(unbroken) == EPOCHS * (limit or len(unbroken) // EPOCHS) > 20
        for seen, (epoch, number, state) in enumerate(states, start=1):
            # a second epoch behind the stop shows wrong positions of what the rest of the first does not use
            last = min(epoch + 2, EPOCHS)
            end = last * len(unbroken) // EPOCHS
            at_end = number == limit  # Lightning goes on with the next epoch there
            resumed = make()
            for loader in resumed:
                loader.load_state_dict(state)
            found, _ = run(resumed, epoch + at_end, last, limit, skip=0 if at_end else number)
            assert found == unbroken[seen:end], f"after batch {number} of epoch {epoch}"


def name(mixture: dict[str, Any]) -> str:
    sampling = mixture["sampling"]
    shares = sampling if isinstance(sampling, str) else "".join(map(str, sampling.values()))
    return f"{mixture['batch_subsets']}-{shares}"


@pytest.mark.parametrize("mixture", MIXTURES, ids=name)
def test_a_stream_resumes_after_any_batch(mixture: dict[str, Any]) -> None:
    check_every_stop(streaming=True, **mixture)


@pytest.mark.parametrize("mixture", MIXTURES[::3], ids=name)
def test_a_stream_of_two_ranks_resumes_after_any_batch(mixture: dict[str, Any]) -> None:
    check_every_stop(streaming=True, world_size=2, **mixture)


@pytest.mark.parametrize("mixture", MIXTURES, ids=name)
def test_rows_by_index_resume_after_any_batch(mixture: dict[str, Any]) -> None:
    check_every_stop(streaming=False, **mixture)
    check_every_stop(streaming=False, world_size=2, **mixture)


@pytest.mark.parametrize("mode", ["mixed", "single"])
def test_a_stream_with_rows_that_are_skipped_resumes_after_any_batch(mode: str) -> None:
    check_every_stop(streaming=True, empty=True, batch_subsets=mode)


@pytest.mark.parametrize("mode", ["mixed", "single"])
def test_epochs_that_are_broken_off_resume_after_any_batch(mode: str) -> None:
    check_every_stop(streaming=True, batch_subsets=mode, limit=7)


@pytest.mark.slow
def test_workers_that_read_ahead_resume_after_any_batch() -> None:
    """Batches that were read ahead of the one that was handed out are not lost, nor is a subset's place."""
    unbroken, _ = run([make_loader(True, 0, 1, batch_subsets="single")], last=2, limit=9)
    with_workers = [make_loader(True, 0, 1, workers=2, batch_subsets="single")]
    batches, states = run(with_workers, last=2, limit=9)
    assert batches == unbroken
    for seen in (3, 8):
        resumed = [make_loader(True, 0, 1, workers=2 if seen == 3 else 0, batch_subsets="single")]
        resumed[0].load_state_dict(states[seen - 1][2])
        assert run(resumed, 0, 2, limit=9, skip=seen)[0] == unbroken[seen:]
