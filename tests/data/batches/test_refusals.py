"""Images that an encoder cannot take are skipped, counted and named, as broken ones are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from data_roots import Recorder, collate, make_root, make_trainer, train_row, write_rows
from PIL import Image
from torch import Tensor

from fanoise_lightning.data import MMEBDataModule, PairDataModule
from fanoise_lightning.data.batches.skipped import TooManySkippedError
from fanoise_lightning.sample import Sample


class Picky:
    """An encoder's collate that takes no strips, and no image at all that is green.

    `check` knows of the strips alone.
    """

    def __init__(self) -> None:
        self.collated: list[int] = []
        self.checked = 0

    def check(self, sample: Sample) -> None:
        self.checked += 1
        if any(max(image.size) > 200 * min(image.size) for image in sample.images):
            raise ValueError(f"no strip of {sample.image.width}x{sample.image.height}")

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        self.collated.append(len(samples))
        for row, sample in enumerate(samples):
            if any(max(image.size) > 200 * min(image.size) for image in sample.images):
                raise ValueError(f"row {row} of the batch: a strip")
            if any(image.getpixel((0, 0))[1] == 255 for image in sample.images):
                raise ZeroDivisionError("green")
        return collate(samples)


class PickyWithoutCheck(Picky):
    check = None


def write_strip(path: Path, width: int = 3, height: int = 900, colour: str = "black") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of 48 rows of subset a, 8 have the image 3.png, a strip, and 8 the image 5.png, which is green."""
    root = make_root(tmp_path / "root", ".parquet", sizes=(48, 12))
    write_strip(root / "images" / "3.png")
    write_strip(root / "images" / "5.png", 4, 4, "lime")
    return root


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", [Picky, PickyWithoutCheck])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_the_encoder_refuses_is_skipped_and_named(
    root: Path, kind: Callable[[], Any], streaming: bool
) -> None:
    data = MMEBDataModule(
        root, batch_size=12, num_workers=0, collate=kind(), max_skipped=0.5, streaming=streaming
    )
    data.setup()
    skipped: list[str] = []
    for batch in data.train_dataloader():
        assert len(batch["query"]["number"]) == len(batch["target"]["number"]) == 12
        twice = [
            n for n in batch["query"]["number"].tolist() if batch["query"]["number"].tolist().count(n) > 1
        ]
        masked = batch["query"]["number"][batch["mask_pairs"]].tolist()
        assert set(twice) <= set(masked)
        assert not any(number < 2000 and (number - 1000) % 6 in (3, 5) for number in batch["query"]["number"])
        skipped += batch["skipped"]
    strips = [line for line in skipped if "strip" in line]
    green = [line for line in skipped if line.endswith("green")]
    assert len(set(strips)) == len(set(green)) == 8
    assert all("subset `a`" in line and "a.parquet`, row " in line for line in skipped)
    assert all("the encoder refuses it" in line for line in skipped)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_other_pairs_of_a_batch_stay_in_their_places(root: Path, streaming: bool) -> None:
    def numbers(encoder: Callable[..., Any]) -> list[int]:
        data = MMEBDataModule(
            root, batch_size=12, num_workers=0, collate=encoder, max_skipped=0.5, streaming=streaming, seed=0
        )
        data.setup()
        return [n for batch in data.train_dataloader() for n in batch["query"]["number"].tolist()]

    taken = [
        (picked, given)
        for picked, given in zip(numbers(Picky()), numbers(collate), strict=True)
        if given >= 2000 or (given - 1000) % 6 not in (3, 5)
    ]
    assert len(taken) > 40
    assert all(picked == given for picked, given in taken)


def test_the_check_is_asked_only_after_a_failure(root: Path) -> None:
    picky = Picky()
    data = MMEBDataModule(root, batch_size=12, num_workers=0, collate=picky, train_subsets=["b"], seed=0)
    data.setup()
    assert len(list(data.train_dataloader())) == 1
    assert (picky.collated, picky.checked) == ([12, 12], 0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_items_that_the_encoder_refuses_are_left_out(root: Path) -> None:
    data = MMEBDataModule(root, num_workers=0, collate=Picky())
    data.setup("validate")
    (batch,) = data.val_dataloader()
    looking = data.eval_sets[1]
    lost = {int(data.eval_suite.numbers[1][looking.queries[query]]) for query in (3, 5)}
    assert set(batch["index"].tolist()) == set(range(len(data.eval_suite))) - lost
    assert len(batch["inputs"]["number"]) == len(batch["index"])
    assert sorted(line.split(": ", 1)[1] for line in batch["skipped"]) == [
        "the encoder refuses it: green",
        "the encoder refuses it: no strip of 3x900",
    ]
    assert all(line.startswith("subset `looking`, item ") for line in batch["skipped"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_they_count_against_the_limit(root: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.collate = Picky()  # type: ignore[method-assign]
    data = MMEBDataModule(root, batch_size=12, num_workers=0, max_skipped=0.1, seed=0)
    with pytest.raises(TooManySkippedError, match=r"allows (6|5)(?s:.*)no strip of 3x900"):
        make_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(recorder, datamodule=data)


def test_a_side_that_nothing_is_wrong_with_is_no_cause(tmp_path: Path) -> None:
    def broken(samples: Sequence[Sample]) -> dict[str, Tensor]:
        if len(samples) > 1:
            raise MemoryError("together they are too many")
        return collate(samples)

    def no_tokenizer(samples: Sequence[Sample]) -> dict[str, Tensor]:
        raise AttributeError("no tokenizer")

    rows = write_rows(tmp_path / "s.jsonl", [train_row(row) for row in range(20)])
    for encoder, error in ((broken, MemoryError), (no_tokenizer, AttributeError)):
        data = PairDataModule(rows, batch_size=4, num_workers=0, collate=encoder, max_skipped=1.0)
        data.setup()
        with pytest.raises(error, match=r"too many|no tokenizer"):
            next(iter(data.train_dataloader()))
        with pytest.raises(error, match=r"too many|no tokenizer"):
            next(iter(data.val_dataloader()))


def test_a_whole_side_of_refused_images_is_told_with_its_cause(tmp_path: Path) -> None:
    """Hard negatives count as their pair; chunks are collated one by one."""
    write_strip(tmp_path / "strip.png")
    rows = [train_row(row) for row in range(20)]
    for row in (2, 3):
        rows[row] |= {"neg_text": ["7", "8"], "neg_image_path": ["", "strip.png"]}
    path = write_rows(tmp_path / "s.jsonl", rows)
    data = PairDataModule(path, batch_size=6, num_workers=0, collate=Picky(), max_skipped=0.5, val=path)
    data.setup()
    lines = [line for batch in data.train_dataloader() for line in batch["skipped"]]
    assert {line.split(": ")[0] for line in lines} == {
        f"subset `s`, `{path}`, line {line}" for line in (3, 4)
    }


@pytest.mark.slow
def test_strips_and_qwen2_vl(tmp_path: Path) -> None:
    """The real thing: its processor ends in an error for images 200 times as long as wide."""
    from tiny_models import save_tiny

    from fanoise_lightning.encoders.vision_language_collate import VisionLanguageCollate

    for name, size in {"0.png": (3, 900), "1.png": (5000, 1), "2.png": (56, 56)}.items():
        write_strip(tmp_path / name, *size)
    rows = [train_row(row, f"{row}.png" if row < 2 else "2.png") for row in range(24)]
    path = write_rows(tmp_path / "mine.jsonl", rows)
    encoder = VisionLanguageCollate(save_tiny(tmp_path / "qwen", "qwen2_vl"))
    data = PairDataModule(path, batch_size=8, num_workers=0, collate=encoder, max_skipped=0.2, val=path)
    data.setup()
    batches = list(data.train_dataloader())
    assert [len(batch["query"]["input_ids"]) for batch in batches] == [8, 8, 8]
    lines = [line for batch in batches for line in batch["skipped"]]
    for line, size in ((1, "3x900"), (2, "5000x1")):
        (told,) = {text for text in lines if f"mine.jsonl`, line {line}:" in text}
        assert f"cannot take an image of {size}" in told
    (evaluated,) = data.val_dataloader()
    assert len(evaluated["index"]) == len(data.eval_suite) - 2
    assert sorted("3x900" in line or "5000x1" in line for line in evaluated["skipped"]) == [True, True]
