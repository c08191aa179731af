"""What replaces pairs whose images cannot be used: never the same pair twice without a mask."""

from __future__ import annotations

import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_roots import Recorder, collate, make_root, make_trainer, train_row, write_image, write_rows
from hypothesis import given
from hypothesis import strategies as st
from streams import from_shards

from fanoise_lightning.data import MMEBDataModule
from fanoise_lightning.data.batches.mixing import Batch, MixingSampler
from fanoise_lightning.data.batches.refusals import SkipRefused
from fanoise_lightning.data.batches.replacements import repeat, walk
from fanoise_lightning.data.batches.skipped import SkipLimit, SkipLog, TooManySkippedError
from fanoise_lightning.data.batches.training import PairCollate, TrainDataset
from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.records import read_train
from fanoise_lightning.data.streaming.loader import StreamDataset, StreamLoader, StreamSampler
from fanoise_lightning.data.streaming.reader import TrainStream
from fanoise_lightning.sample import Pair, Sample

NO_LIMIT = SkipLimit("training rows", 10**6)


def train_set(tmp_path: Path, size: int, good: set[int], limit: SkipLimit = NO_LIMIT) -> TrainDataset:
    """Rows of which those that are `good` have an image."""
    write_image(tmp_path / "images" / "good.png")
    rows = [train_row(row, "good.png" if row in good else f"{row}.png") for row in range(size)]
    rows_of = read_train(write_rows(tmp_path / "s.jsonl", rows), "s")
    return TrainDataset([rows_of], ImageStore(ImageRoot(tmp_path / "images")), limit)


def numbers(pairs: list[Pair]) -> list[int]:
    return [int(pair.target.text[1:]) for pair in pairs]


@given(st.integers(1, 200), st.integers(0, 10))
def test_a_walk_meets_every_row_once(size: int, key: int) -> None:
    assert sorted(walk(size, key)) == list(range(size))


def test_replacements_are_drawn_over_the_subset(tmp_path: Path) -> None:
    good = set(range(0, 1000, 2))
    data = train_set(tmp_path, 1000, good)
    drawn: list[int] = []
    for first in range(0, 1000, 50):
        batch = [(0, row) for row in range(first, first + 50)]
        pairs, skipped, _ = data[Batch(batch, key=(first,))]
        rows = numbers(pairs)
        assert rows[::2] == list(range(first, first + 50, 2))  # good ones stay where they are
        assert len(set(rows)) == 50
        assert set(rows) <= good
        assert {int(line.split("image `")[1].split(".")[0]) for line in skipped} & good == set()
        drawn += rows[1::2]
    # 500 draws out of 500: as good as uniform in the thirds of the subset, and not from the neighbourhood
    thirds = Counter(row * 3 // 1000 for row in drawn)
    assert max(thirds.values()) - min(thirds.values()) < 6 * math.sqrt(500 / 3)
    assert len(set(drawn)) > 250


def test_the_draw_follows_from_seed_epoch_and_number_of_the_batch(tmp_path: Path) -> None:
    data = train_set(tmp_path, 200, set(range(0, 200, 2)))
    rows = [(0, row) for row in range(20)]
    first, again, other = (numbers(data[Batch(rows, key=key)][0]) for key in ((0, 1), (0, 1), (0, 2)))
    assert first == again
    assert sorted(first) != sorted(other)


def parts_of(data: TrainDataset, size: int, world_size: int, **options: Any) -> list[list[Batch]]:
    """The batches of all ranks: ``[batch][rank]``."""
    samplers = [
        MixingSampler(data, [size], ["s"], batch_size=4, seed=3, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    return [list(parts) for parts in zip(*samplers)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("mode", ["mixed", "single", 2])
def test_no_row_stands_in_two_processes(tmp_path: Path, world_size: int, mode: Any) -> None:
    """Every batch of an epoch, with half of the rows broken."""
    size = 64 * world_size  # a quarter of the good rows is in a batch at most
    data = train_set(tmp_path, size, set(range(0, size, 2)))
    collate_pairs, drawn = SkipRefused(collate, PairCollate(collate), data), 0
    for parts in parts_of(data, size, world_size, batch_subsets=mode):
        told = [collate_pairs(data[part])["query"]["number"].tolist() for part in parts]
        rows = [row for part in told for row in part]
        assert len(set(rows)) == 4 * world_size
        drawn += len(set(rows) - {row for part in parts for _, row in part.rows})
    assert drawn == size // 2


def test_refused_pairs_are_replaced_by_rows_of_no_other_process(tmp_path: Path) -> None:
    """An encoder refuses every eighth row, and every fourth image is broken; none is tried twice."""
    size, world_size = 96, 2
    data = train_set(tmp_path, size, {row for row in range(size) if row % 4})

    def refusing(samples: list[Sample]) -> Any:
        if any(int(sample.text[1:]) % 8 == 1 for sample in samples if sample.text.startswith("q")):
            raise ValueError("one of these")
        return collate(samples)

    collate_pairs = SkipRefused(refusing, PairCollate(refusing), data)
    for parts in parts_of(data, size, world_size):
        told = [collate_pairs(data[part]) for part in parts]
        rows = [row for batch in told for row in batch["query"]["number"].tolist()]
        assert len(set(rows)) == 8
        assert {row % 8 for row in rows} <= {2, 3, 5, 6, 7}
        for batch in told:
            assert len(batch["skipped"]) == len(set(batch["skipped"]))


def test_a_process_whose_share_is_broken_takes_and_masks_rows_of_the_others(tmp_path: Path) -> None:
    """One of the rows that no process has is good: all processes that need it take it, and mask it."""
    data = train_set(tmp_path, 40, {7})
    told = []
    for rank in range(3):
        others = np.array([(0, 10 * number) for number in range(3) if number != rank])
        batch = Batch([(0, 10 * rank)], others, (0, 0), rank, 3)
        told.append(PairCollate(collate, mask=False)(data[batch]))
    assert [batch["query"]["number"].tolist() for batch in told] == [[7]] * 3
    assert len({*(batch["target_id"].item() for batch in told)} - {-1}) == 1
    assert all(batch["mask_pairs"].all() for batch in told)


def test_a_row_that_another_process_has_never_stands_in(tmp_path: Path) -> None:
    data = train_set(tmp_path, 9, {7})
    with pytest.raises(ImageError, match="subset `s`: not one row that no other process has in its batch"):
        data[Batch([(0, 1)], np.array([(0, 7)]), (0, 0), 1, 2)]


def test_a_pair_that_must_stand_twice_is_not_its_own_negative(tmp_path: Path) -> None:
    data = train_set(tmp_path, 60, {7})
    for batch in ([(0, 7), (0, 8), (0, 9)], [(0, 20), (0, 21)]):
        read = data[Batch(batch)]
        told = PairCollate(collate, mask=False)(read)
        assert set(numbers(read[0])) == {7}
        assert len(set(told["target_id"].tolist())) == 1
        assert told["target_id"][0] >= 0
        assert told["mask_pairs"].tolist() == [True] * len(batch)


def test_without_one_good_row_the_subset_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="subset `s`: not one row has images that can be used"):
        train_set(tmp_path, 9, set())[Batch([(0, 1), (0, 2)])]


def test_a_subset_has_a_limit_of_its_own(tmp_path: Path) -> None:
    data = train_set(tmp_path, 60, {7}, SkipLimit("training rows", 10**6, {"s": 5}))
    with pytest.raises(TooManySkippedError, match=r"6 training rows of subset `s` cannot.*allows 5"):
        data[Batch([(0, 7), (0, 8)])]
    log = SkipLog(SkipLimit("training rows", 1000, {"s": 1}), 100_060)
    with pytest.raises(TooManySkippedError, match="subset `s`"), pytest.warns(UserWarning, match="skipped"):
        log.add(train_set(tmp_path, 60, {7})[Batch([(0, 8)])][1])


def test_a_small_subset_that_is_broken_stops_a_large_run(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", sizes=(60, 2000))
    for number in range(1, 6):
        (root / "images" / f"{number}.png").unlink()
    data = MMEBDataModule(root, batch_size=20, num_workers=0, max_skipped=0.05, seed=0)  # 50 of 2060 rows
    with pytest.raises(TooManySkippedError, match=r"4 training rows of subset `a` cannot.*allows 3"):
        make_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(Recorder(), datamodule=data)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=30))
def test_gaps_are_filled_evenly_and_within_the_subset(places: list[tuple[bool, int]]) -> None:
    subsets = [subset for _, subset in places]
    pairs = [
        Pair(Sample(f"q{at}"), Sample(f"t{at}"), mask_pairs=False) if good else None
        for at, (good, _) in enumerate(places)
    ]
    if not any(pairs):
        return
    filled = repeat(pairs, subsets)
    uses = Counter(int(pair.query.text[1:]) for pair in filled)
    for at, (pair, new) in enumerate(zip(pairs, filled)):
        source = int(new.query.text[1:])
        assert pair is None or source == at
        assert new.mask_pairs == (uses[source] > 1)
        if subsets[at] in {subset for good, subset in places if good}:
            assert subsets[source] == subsets[at]
    if len(set(subsets)) == 1:
        assert max(uses.values()) - min(uses.values()) <= 1


# Streams with batches that have no good pair


def make_loader(
    tmp_path: Path, good: set[int], size: int = 24, allowed: int = 100, **options: Any
) -> StreamLoader:
    """Batches of 4, in the same order whichever rows are `good`."""
    write_image(tmp_path / "good.png")
    rows = [train_row(row, "good.png" if row in good else f"{row}.png") for row in range(size)]
    streams = [TrainStream("s", from_shards([rows]), size)]
    data = StreamDataset(streams, ImageStore(ImageRoot(tmp_path)), SkipLimit("training rows", allowed))
    return StreamLoader(
        data,
        sampler=StreamSampler(data, streams, batch_size=4, seed=1, shuffle_block=1),
        batch_size=None,
        collate_fn=SkipRefused(collate, PairCollate(collate), data),
        **options,
    )


def read(loader: StreamLoader, epoch: int = 0, stop: int | None = None) -> list[tuple[list[int], int]]:
    """The rows of each batch, and how many were skipped."""
    loader.sampler.set_epoch(epoch)
    batches = []
    for batch in loader:
        batches.append((batch["query"]["number"].tolist(), len(batch["skipped"])))
        if len(batches) == stop:
            break
    return batches


@pytest.fixture
def order(tmp_path: Path) -> list[list[int]]:
    """The rows of each batch of two epochs, 6 each."""
    loader = make_loader(tmp_path, set(range(24)))
    return [rows for epoch in (0, 1) for rows, _ in read(loader, epoch)]


def test_a_batch_without_a_good_pair_is_replaced_by_the_next(tmp_path: Path, order: list[list[int]]) -> None:
    first, last = order[0], order[5]
    expected = [(first, 0), *[(last, 4)] * 4, (last, 0)]
    assert read(make_loader(tmp_path, {*first, *last})) == expected
    assert read(make_loader(tmp_path, {*last})) == [(last, 4)] * 5 + [(last, 0)]


def test_the_last_of_an_epoch_are_replaced_by_the_first_of_the_next(
    tmp_path: Path, order: list[list[int]]
) -> None:
    good = {*order[1], *order[2]}
    following = next(rows for rows in order[6:] if good & {*rows})
    loader = make_loader(tmp_path, good)
    *_, (fifth, lost), (sixth, lost_too) = read(loader)
    assert fifth == sixth
    assert {*fifth} == good & {*following}
    assert lost == lost_too == 4  # their own: those of the next epoch are counted there
    assert sum(skipped for _, skipped in read(loader, 1)) == 16


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bad", [{5}, {4, 5}, {0, 4, 5}, {1, 2, 5}, {5, 6}, {3, 4, 5, 6, 7}, {2, 11}])
def test_where_a_stream_is_resumed_does_not_matter(
    tmp_path: Path, order: list[list[int]], bad: set[int], workers: int
) -> None:
    """Of two epochs whole batches are `bad`; every row is in both epochs, so others have gaps."""
    good = {*range(24)} - {row for number in bad for row in order[number]}
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    whole = make_loader(tmp_path, good)
    unbroken = read(whole) + read(whole, 1)
    assert [skipped for _, skipped in unbroken] == [len({*rows} - good) for rows in order]
    for stop in range(1, 12) if not workers else (5,):
        loader = make_loader(tmp_path, good, **options)
        seen = read(loader, 0, min(stop, 6)) + (read(loader, 1, stop - 6) if stop > 6 else [])
        assert seen == unbroken[:stop], f"before {stop}"
        file = io.BytesIO()
        torch.save(loader.state_dict(), file)
        file.seek(0)
        resumed = make_loader(tmp_path, good, **options)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        left = (read(resumed) if stop < 6 else []) + read(resumed, 1)
        assert left == unbroken[stop:], f"after {stop}"


def test_a_stream_stops_at_its_limit_not_at_a_batch(tmp_path: Path) -> None:
    with pytest.raises(TooManySkippedError, match="12 training rows cannot"):
        read(make_loader(tmp_path, {20}, allowed=10))
    with pytest.raises(ImageError, match="not one pair of an epoch can be used"):
        read(make_loader(tmp_path, set()))


def test_a_streamed_run_continues(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", ".parquet", sizes=(48,))
    for number in range(1, 6):
        (root / "images" / f"{number}.png").unlink()
    recorder = Recorder()
    options: dict[str, Any] = {"streaming": True, "shuffle_block": 1, "max_skipped": 0.9}
    data = MMEBDataModule(root, batch_size=2, num_workers=0, **options)
    with pytest.warns(UserWarning, match="40 of 48 training rows so far"):
        make_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(recorder, datamodule=data)
    assert len(recorder.trained) == 24
    assert {number % 6 for batch in recorder.trained for number in batch} == {1000 % 6}
