from __future__ import annotations

import ast
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from data_roots import Recorder, collate, make_root, make_trainer, write_image, write_rows, zip_folder
from lightning.pytorch import Trainer
from processes import run_on_ranks

import fanoise_lightning.data
from fanoise_lightning.data import MMEBDataModule
from fanoise_lightning.data.batches.skipped import TooManySkippedError


def make_data(root: Path, **options: Any) -> MMEBDataModule:
    return MMEBDataModule(root, **{"batch_size": 6, "num_workers": 0, "collate": collate, **options})


def set_up(root: Path, stage: str = "fit", **options: Any) -> MMEBDataModule:
    data = make_data(root, **options)
    data.setup(stage)
    return data


def numbers(data: MMEBDataModule) -> list[int]:
    return sorted(number for batch in data.train_dataloader() for number in batch["query"]["number"].tolist())


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("images", ["folder", "zip"])
def test_an_epoch_and_an_evaluation_from_every_layout(tmp_path: Path, suffix: str, images: str) -> None:
    root = make_root(tmp_path / "root", suffix)
    if images == "zip":
        zip_folder(root / "images")
        (root / "images").rename(root / "elsewhere")
    data = set_up(root)
    assert numbers(data) == [*range(1000, 1024), *range(2000, 2012)]
    for batch in data.train_dataloader():
        number, grey = batch["query"]["number"], batch["query"]["grey"]
        expected = [40 * ((value - 1000) % 6) if value < 2000 else -1 for value in number.tolist()]
        assert grey.tolist() == expected
    reading, looking = data.predict_dataloader()
    assert (reading.dataset.subset.name, looking.dataset.subset.floors) == ("reading", {"chance": 0.3})
    (batch,) = looking
    assert len(batch["index"]) == 6 + 6
    assert batch["inputs"]["grey"][looking.dataset.queries].tolist() == [0, 40, 80, 120, 160, 200]
    assert batch["inputs"]["number"][looking.dataset.candidates].tolist() == [
        [row, (row + 1) % 6, (row + 2) % 6] for row in range(6)
    ]


def test_lightning_trains_and_evaluates(
    root: Path, recorder: Recorder, trainer: Callable[..., Trainer]
) -> None:
    run, data = trainer(max_epochs=2), MMEBDataModule(root, batch_size=6, eval_batch_size=4, num_workers=0)
    run.fit(recorder, datamodule=data)
    assert [len(batch) for batch in recorder.trained] == [6] * 12
    told = {"query_id", "target_id", "mask_pairs"}  # and "skipped" was taken out
    assert recorder.keys == {"query", "target", "index", "inputs"} | told
    for call in (run.validate, run.test):
        recorder.evaluated.clear()
        call(recorder, datamodule=data)
        # six texts and six images with a text, and six texts; the subsets share their six candidates
        assert [index for _, batch in recorder.evaluated for index in batch] == list(range(18))
    recorder.evaluated.clear()
    run.predict(recorder, datamodule=data)
    for number in (0, 1):
        seen = [index for loader, batch in recorder.evaluated for index in batch if loader == number]
        assert seen == list(range(12))


def test_setup_reads_once_and_only_what_is_needed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = set_up(root, "validate")
    assert data.train_set is None
    data.setup("fit")
    train, evaluation = data.train_set, data.eval_sets
    data.setup("fit")
    data.setup("test")
    assert data.train_set is train
    assert data.eval_sets is evaluation


def test_subsets_are_chosen_by_name(root: Path) -> None:
    data = set_up(root, train_subsets=["b"], eval_subsets=["looking"])
    assert numbers(data) == list(range(2000, 2012))
    assert [subset.subset.name for subset in data.val_dataloader().dataset.subsets] == ["looking"]
    assert [loader.dataset.subset.name for loader in data.predict_dataloader()] == ["looking"]


def test_num_samples_takes_the_first_rows_of_each_subset(root: Path) -> None:
    assert numbers(set_up(root, num_samples=6)) == [*range(1000, 1006), *range(2000, 2006)]


@pytest.mark.parametrize("streaming", [False, True])
def test_num_samples_takes_a_share_of_each_subset(root: Path, streaming: bool) -> None:
    """Of 24 and of 12 rows, rounded up."""
    found = numbers(set_up(root, num_samples=0.26, streaming=streaming, batch_size=11))
    assert sorted(found) == [*range(1000, 1007), *range(2000, 2004)]
    assert len(numbers(set_up(root, num_samples=1.0, streaming=streaming))) == 36
    # as a command line may read a number of rows
    assert len(numbers(set_up(root, num_samples=6.0, streaming=streaming))) == 12


def test_a_share_can_be_a_random_sample(root: Path) -> None:
    drawn, other = (numbers(set_up(root, num_samples=0.5, sample="random", seed=seed)) for seed in (1, 2))
    for found in (drawn, other):
        assert [sum(low <= n < low + 1000 for n in found) for low in (1000, 2000)] == [12, 6]
    assert sorted(drawn) != sorted(other)


def test_blind_drops_the_query_images_everywhere(root: Path) -> None:
    data = set_up(root, blind=True)
    assert all((batch["query"]["grey"] == -1).all() for batch in data.train_dataloader())
    assert all((batch["inputs"]["grey"] == -1).all() for batch in data.val_dataloader())


def test_uniform_sampling_balances_subsets(root: Path) -> None:
    data = set_up(root, sampling="uniform")
    assert [sum(number < 2000 for number in numbers(data)), len(numbers(data))] == [18, 36]


def test_single_subset_batches(root: Path) -> None:
    for batch in set_up(root, batch_subsets="single").train_dataloader():
        assert len({number // 1000 for number in batch["query"]["number"].tolist()}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_subsets": ["aa"]}, "unknown training subset `aa`; did you mean `a`"),
        ({"eval_subsets": ["lookin"]}, "unknown evaluation subset `lookin`; did you mean `looking`"),
        ({"train_subsets": []}, "no subset to train on"),
        ({"batch_size": 0}, "`batch_size` must be at least 2, got 0"),
        ({"batch_size": 1}, "`batch_size` must be at least 2, got 1"),
        ({"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
        ({"max_skipped": 1.5}, "`max_skipped`.*1.5"),
        ({"num_samples": 0}, "`num_samples` must be at least 1, got 0"),
        ({"num_samples": 1.5}, "share of the rows and must lie between 0 and 1, got 1.5; pass an int"),
        ({"num_samples": 0.0}, "share of the rows and must lie between 0 and 1, got 0.0"),
        ({"batch_size": 37}, "36 rows, fewer than a global batch of 37"),
        ({"sampling": "evenly"}, "`sampling`.*'evenly'"),
        ({"batch_subsets": "one"}, "`batch_subsets`.*'one'"),
    ],
)
def test_bad_arguments_are_named(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_up(root, **options).train_dataloader()


def test_what_the_root_lacks_is_named(root: Path) -> None:
    (root / "images").rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"subset `\w+` has images.*expected images/ or images\.zip"):
        set_up(root)
    set_up(root, train_subsets=["b"], eval_subsets=["reading"])  # texts alone need no images
    (root / "elsewhere").rename(root / "images")
    write_rows(root / "eval" / "extra.jsonl", [])
    with pytest.raises(
        ValueError, match=r"extra\.jsonl` has no entry with a distribution in .*subsets\.json"
    ):
        set_up(root)
    (root / "eval" / "extra.jsonl").unlink()
    (root / "eval" / "looking.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="lists subset `looking`, but"):
        set_up(root)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist"):
        set_up(root / "nowhere")


def test_without_a_collate_the_error_says_what_to_do(root: Path) -> None:
    with pytest.raises(ValueError, match=r"pass `MMEBDataModule\(collate=\.\.\.\)`"):
        set_up(root, collate=None).train_dataloader()


def test_an_explicit_collate_wins(root: Path, recorder: Recorder, trainer: Callable[..., Trainer]) -> None:
    def other(samples: Any) -> dict[str, torch.Tensor]:
        return {"number": torch.full((len(samples),), 99)}

    trainer(max_steps=1, limit_val_batches=0).fit(recorder, datamodule=make_data(root, collate=other))
    assert recorder.trained == [[99] * 6]


def test_overfit_batches_is_refused(root: Path, recorder: Recorder, trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ValueError, match=r"`overfit_batches`.*`num_samples`"):
        trainer(overfit_batches=1, max_epochs=1).fit(recorder, datamodule=make_data(root))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_broken_images_are_skipped_counted_and_reported(
    root: Path, recorder: Recorder, trainer: Callable[..., Trainer], workers: int
) -> None:
    (root / "images" / "3.png").write_bytes(b"broken")
    data = make_data(root, max_skipped=0.5, num_workers=workers)
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        trainer(max_epochs=2).fit(recorder, datamodule=data)
    said = [str(warning.message) for warning in caught]
    first = [text for text in said if "cannot be read and is skipped" in text]
    assert len(first) == 2  # one of training, one of evaluation
    assert "subset `a`" in first[0]
    assert "image `3.png`" in first[0]
    reports = [text for text in said if "so far" in text]
    assert len(reports) == 4  # two epochs, two validations
    assert "4 of 36 training rows" in reports[0]
    assert "1 of 18 evaluation items" in reports[1]
    assert [len(batch) for batch in recorder.trained] == [6] * 12
    assert not {1003, 1009, 1015, 1021} & {number for batch in recorder.trained for number in batch}
    broken = int(data.eval_suite.numbers[1][data.eval_sets[1].queries[3]])
    assert broken not in [index for _, batch in recorder.evaluated for index in batch]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_too_many_broken_images_stop_the_run_with_the_list(
    root: Path, recorder: Recorder, trainer: Callable[..., Trainer]
) -> None:
    (root / "images" / "3.png").unlink()
    with pytest.raises(TooManySkippedError, match=r"training rows(?s:.*)allows 1(?s:.*)3\.png") as error:
        trainer(max_epochs=1).fit(recorder, datamodule=make_data(root, max_skipped=0.03))
    assert str(root / "train" / "a.jsonl") in str(error.value)
    with pytest.raises(TooManySkippedError, match=r"1 evaluation items(?s:.*)3\.png"):
        trainer().validate(recorder, datamodule=make_data(root, max_skipped=0.03))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.slow
def test_the_limit_is_told_from_a_worker_as_well(
    root: Path, recorder: Recorder, trainer: Callable[..., Trainer]
) -> None:
    for image in (root / "images").iterdir():
        image.unlink()
    with pytest.raises(TooManySkippedError, match=r"training rows(?s:.*)no such file"):
        trainer(max_epochs=1).fit(recorder, datamodule=make_data(root, num_workers=1))


def imported(nodes: Sequence[ast.AST]) -> set[str]:
    """The modules that the nodes import."""
    names = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    return {*names, *(node.module or "" for node in nodes if isinstance(node, ast.ImportFrom))}


def test_the_data_side_knows_nothing_of_encoders_and_their_libraries() -> None:
    forbidden = ("transformers", "open_clip", "fanoise_lightning.encoders", "fanoise_lightning.module")
    on_first_use = ("datasets", "huggingface_hub")
    for file in Path(fanoise_lightning.data.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text())
        assert not [name for name in imported(list(ast.walk(tree))) if name.startswith(forbidden)], file
        assert not [name for name in imported(tree.body) if name.startswith(on_first_use)], file


def test_two_ranks_see_disjoint_halves_of_the_global_batch(root: Path) -> None:
    def on_rank(rank: int) -> dict[str, Any]:
        recorder, data = Recorder(), MMEBDataModule(root, batch_size=3, num_workers=0)
        make_trainer(root, devices=2, strategy="ddp", max_epochs=2).fit(recorder, datamodule=data)
        return {"trained": recorder.trained, "evaluated": recorder.evaluated}

    first, second = run_on_ranks(on_rank, 2)
    joined = [one + other for one, other in zip(first["trained"], second["trained"], strict=True)]
    whole = make_data(root, batch_size=6)
    whole.setup("fit")
    loader = whole.train_dataloader()
    expected = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        expected += [batch["query"]["number"].tolist() for batch in loader]
    assert joined == expected
    assert expected[:6] != expected[6:]
    halves = [{index for _, batch in rank["evaluated"] for index in batch} for rank in (first, second)]
    assert halves[0] | halves[1] == set(range(len(whole.eval_suite)))
    assert not halves[0] & halves[1]


def test_a_data_module_survives_pickling(root: Path) -> None:
    copy = pickle.loads(pickle.dumps(set_up(root)))
    assert numbers(copy) == [*range(1000, 1024), *range(2000, 2012)]


def test_a_truncated_image_is_skipped_like_a_missing_one(root: Path) -> None:
    file = write_image(root / "images" / "3.png")
    file.write_bytes(file.read_bytes()[:-30])
    batches = set_up(root, max_skipped=1.0).train_dataloader()
    assert len({line for batch in batches for line in batch["skipped"]}) == 4
