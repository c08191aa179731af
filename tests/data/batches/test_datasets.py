from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from data_roots import collate, eval_row, train_row, write_image, write_rows

from fanoise_lightning.data.batches import training
from fanoise_lightning.data.batches.evaluation import EvalDataset, ItemCollate
from fanoise_lightning.data.batches.mixing import Batch
from fanoise_lightning.data.batches.refusals import Read
from fanoise_lightning.data.batches.skipped import SkipLimit, TooManySkippedError
from fanoise_lightning.data.batches.training import PairCollate, TrainDataset, open_pair
from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.records import read_eval, read_train
from fanoise_lightning.data.rows.references import Reference, identity
from fanoise_lightning.subset import Subset

LIMIT = SkipLimit("training rows", 5)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    for grey in range(3):
        write_image(tmp_path / "images" / f"{grey}.png", grey)
    (tmp_path / "images" / "bad.png").touch()
    return ImageStore(ImageRoot(tmp_path / "images"))


def train_set(tmp_path: Path, store: ImageStore, paths: list[str], limit: SkipLimit = LIMIT) -> TrainDataset:
    rows = [train_row(number, path, path) for number, path in enumerate(paths)]
    return TrainDataset([read_train(write_rows(tmp_path / "s.jsonl", rows), "s")], store, limit)


def eval_set(tmp_path: Path, store: ImageStore, paths: list[str]) -> EvalDataset:
    rows = [eval_row(number, [10 + number, 20], path) for number, path in enumerate(paths)]
    return EvalDataset(read_eval(write_rows(tmp_path / "e.jsonl", rows), Subset("e", "vqa", "OOD")), store)


def test_a_batch_is_read_in_its_order(tmp_path: Path, store: ImageStore) -> None:
    pairs, skipped, _ = train_set(tmp_path, store, ["0.png", "", "2.png"])[Batch([(0, 2), (0, 1)])]
    texts = [(pair.query.text, pair.target.text, pair.subset) for pair in pairs]
    assert texts == [("q2", "t2", "s"), ("q1", "t1", "s")]
    assert pairs[0].query.image.getpixel((0, 0)) == (2, 2, 2)
    assert pairs[1].query.image is None
    assert skipped == []


def test_a_broken_pair_is_replaced_by_the_next_row(tmp_path: Path, store: ImageStore) -> None:
    data = train_set(tmp_path, store, ["0.png", "bad.png", "none.png"])
    pairs, skipped, _ = data[Batch([(0, 1)])]
    assert [pair.query.text for pair in pairs] == ["q0"]  # after the last row comes the first
    assert len(skipped) == 2
    assert "subset `s`" in skipped[0]
    assert "line 2: image `bad.png`" in skipped[0]
    assert "line 3: image `none.png`" in skipped[1]


@pytest.mark.parametrize("room", [0, 3500, 2**20])
def test_pairs_of_deferred_images_are_made_once_as_long_as_there_is_room(
    tmp_path: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    made = []
    monkeypatch.setattr(training, "_ROOM", room)
    monkeypatch.setattr(
        training, "open_pair", lambda *args, **kwargs: made.append(0) or open_pair(*args, **kwargs)
    )
    deferred = ImageStore(store.root, deferred=True)
    data, plain = (train_set(tmp_path, s, ["0.png", "", "2.png"]) for s in (deferred, store))
    batch = Batch([(0, 2), (0, 1), (0, 0)])
    for _ in range(3):
        pairs, expected = data[batch].pairs, plain[batch].pairs
        for pair, other in zip(pairs, expected, strict=True):
            assert (pair.query.text, pair.target_id, pair.origin) == (
                other.query.text,
                other.target_id,
                other.origin,
            )
            assert [i.tobytes() for i in pair.query.images] == [i.tobytes() for i in other.query.images]
    fresh = {0: 9, 3500: 2 + 3, 2**20: 3}[room]  # two fit into 3500 bytes
    assert len(made) == fresh + 9


def test_a_subset_without_one_good_row_is_an_error(tmp_path: Path, store: ImageStore) -> None:
    with pytest.raises(ImageError, match="subset `s`: not one row"):
        train_set(tmp_path, store, ["bad.png", "none.png"])[Batch([(0, 0)])]


def test_the_walk_to_a_good_row_ends_at_the_limit(tmp_path: Path, store: ImageStore) -> None:
    with pytest.raises(TooManySkippedError, match="3 training rows"):
        train_set(tmp_path, store, ["none.png"] * 9, SkipLimit("training rows", 2))[Batch([(0, 0)])]


def test_train_batches_have_queries_targets_and_what_was_skipped(tmp_path: Path, store: ImageStore) -> None:
    data = train_set(tmp_path, store, ["0.png", "bad.png", "2.png"])
    batch = PairCollate(collate)(data[Batch([(0, 0), (0, 1)])])
    assert set(batch) == {"query", "target", "query_id", "target_id", "mask_pairs", "skipped"}
    assert batch["query"]["number"].tolist() == batch["target"]["number"].tolist() == [0, 2]
    assert batch["target"]["grey"].tolist() == [0, 2]
    assert len(batch["skipped"]) == 1


def test_negatives_of_a_batch_are_flattened(tmp_path: Path, store: ImageStore) -> None:
    rows = [train_row(0), {**train_row(1), "neg_text": ["7", "8"], "neg_image_path": ["1.png", ""]}]
    data = TrainDataset([read_train(write_rows(tmp_path / "n.jsonl", rows), "n")], store, LIMIT)
    batch = PairCollate(collate)(data[Batch([(0, 1), (0, 0), (0, 1)])])
    assert batch["negatives"]["number"].tolist() == [7, 8, 7, 8]
    assert batch["negatives"]["grey"].tolist() == [1, -1, 1, -1]


def test_eval_items_are_encoded_once(tmp_path: Path, store: ImageStore) -> None:
    data = eval_set(tmp_path, store, ["0.png", "1.png", "1.png"])
    assert len(data) == 3 + 4
    batch = ItemCollate(collate)([data[index] for index in range(len(data))])
    assert batch["index"].tolist() == list(range(7))
    number, grey = batch["inputs"]["number"], batch["inputs"]["grey"]
    assert grey.tolist() == [-1] * 4 + [0, 1, 1]
    assert number[data.queries].tolist() == [0, 1, 2]
    assert number[data.candidates].tolist() == [[10, 20], [11, 20], [12, 20]]


def test_broken_eval_items_are_left_out(tmp_path: Path, store: ImageStore) -> None:
    data = eval_set(tmp_path, store, ["0.png", "bad.png"])
    bad = int(data.queries[1])
    batch = ItemCollate(collate)([data[index] for index in range(len(data))])
    assert bad not in batch["index"].tolist()
    assert len(batch["index"]) == len(data) - 1 == len(batch["inputs"]["number"])
    assert f"subset `e`, item {bad}: " in batch["skipped"][0]
    assert "bad.png" in batch["skipped"][0]
    alone = ItemCollate(collate)([data[bad]])
    assert (alone["index"].tolist(), alone["inputs"], len(alone["skipped"])) == ([], {}, 1)


def test_datasets_survive_pickling(tmp_path: Path, store: ImageStore) -> None:
    train = pickle.loads(pickle.dumps(train_set(tmp_path, store, ["0.png"])))
    assert train[Batch([(0, 0)])][0][0].query.text == "q0"
    evaluation = pickle.loads(pickle.dumps(eval_set(tmp_path, store, ["0.png"])))
    assert len(evaluation) == 3


def test_pairs_have_the_numbers_that_tell_losses_right_answers(tmp_path: Path, store: ImageStore) -> None:
    rows = [
        {**train_row(0), "neg_text": ["t1", "7"], "neg_image_path": ["", "1.png"]},
        {**train_row(1), "qry": "q0"},
        {**train_row(2), "pos_text": "t0"},
    ]
    path = write_rows(tmp_path / "m.jsonl", rows)
    for mask in (True, False):
        data = TrainDataset([read_train(path, "m", mask_same_target=mask)], store, LIMIT)
        pairs, skipped, _ = data[Batch([(0, 0), (0, 1), (0, 2)])]
        t0, t1, q0, q2 = (identity(Reference(text, "")) for text in ("t0", "t1", "q0", "q2"))
        batch = PairCollate(collate)(Read(pairs, skipped))
        assert batch["target_id"].tolist() == [t0, t1, t0]
        assert batch["negative_id"].tolist() == [t1, identity(Reference("7", "1.png"))]
        assert batch["query_id"].tolist() == [q0, q0, q2]
        assert batch["mask_pairs"].tolist() == [mask] * 3


def test_without_a_mask_only_pairs_that_ask_for_it_have_numbers(store: ImageStore) -> None:
    row = Reference("q1", ""), Reference("t1", ""), [Reference("n1", "")]
    pairs = [open_pair(*row, store, subset="s", mask_pairs=mask) for mask in (False, True)]
    batch = PairCollate(collate, mask=False)(Read(pairs, []))
    told = {name: batch[name].tolist() for name in ("target_id", "negative_id", "query_id")}
    assert told == {
        "target_id": [-1, pairs[1].target_id],
        "negative_id": [-1, *pairs[1].negative_ids],
        "query_id": [-1, pairs[1].query_id],
    }


def test_queries_that_lost_their_images_are_not_the_same(store: ImageStore) -> None:
    pairs = [
        open_pair(Reference("q1", ""), Reference(f"t{n}", ""), [], store, subset="s", mask_pairs=True)
        for n in (1, 2)
    ]
    batch = PairCollate(collate, blind=True)(Read(pairs, []))
    assert batch["query_id"].tolist() == [-1, -1]
    assert batch["target_id"].tolist() == [pair.target_id for pair in pairs]
