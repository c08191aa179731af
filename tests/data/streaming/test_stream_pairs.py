"""Pairs from the rows of streams: their images, their ids, and what replaces a broken one."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_roots import collate, train_row, write_image
from streams import LIMIT, epoch, from_shards, make_loader, numbered

from fanoise_lightning.data.batches.refusals import Read
from fanoise_lightning.data.batches.skipped import SkipLimit, TooManySkippedError
from fanoise_lightning.data.batches.training import PairCollate
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.references import Reference, identity
from fanoise_lightning.data.streaming.loader import StreamDataset
from fanoise_lightning.data.streaming.reader import StreamRow, TrainStream


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
