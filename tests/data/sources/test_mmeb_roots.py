"""MMEB's two repositories as a root: in a folder, and on the hub."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_roots import Recorder, collate, make_root
from fake_hub import FakeHub, Fault, use
from lightning.pytorch import Trainer
from tqdm import tqdm

from fanoise_lightning.data import MMEBDataModule
from fanoise_lightning.data.batches.mixing import Batch
from fanoise_lightning.data.sources.hub_repository import HUB, HubError
from fanoise_lightning.evaluation.mmeb import CATALOG, TRAIN_NAMES, by_train_name

FEW = {"train_subsets": ["CIRR", "VOC2007"], "eval_subsets": ["CIRR", "GQA"]}
ROOT = f"{HUB}TIGER-Lab"


def make_data(root: Path | str, **options: Any) -> MMEBDataModule:
    return MMEBDataModule(root, **{"batch_size": 6, "num_workers": 0, "collate": collate, **options})


def set_up(root: Path | str, **options: Any) -> MMEBDataModule:
    data = make_data(root, **options)
    data.prepare_data()
    data.setup("fit")
    return data


def train_paths(data: MMEBDataModule) -> dict[str, list[str]]:
    return {rows.name: rows.queries.images.to_pylist() for rows in data.train_set.subsets}


def stored(snapshot: Path, config: str, split: str = "original") -> list[dict[str, Any]]:
    files = sorted((snapshot / "MMEB-train" / config).glob(f"{split}-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture
def partial(snapshot: Path, tmp_path: Path) -> Path:
    """A copy that holds only some subsets, and the cards of all."""
    root = tmp_path / "partial"
    for part, configs in (("MMEB-train", FEW["train_subsets"]), ("MMEB-eval", FEW["eval_subsets"])):
        for config in configs:
            shutil.copytree(snapshot / part / config, root / part / config)
        shutil.copy(snapshot / part / "README.md", root / part)
    (root / "MMEB-train" / "images_zip").mkdir()
    for config in FEW["train_subsets"]:
        shutil.copy(
            snapshot / "MMEB-train" / "images_zip" / f"{config}.zip", root / "MMEB-train" / "images_zip"
        )
    shutil.copy(snapshot / "MMEB-eval" / "images.zip", root / "MMEB-eval")
    return root


@pytest.fixture
def hub(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub(snapshot).running() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        yield hub


def test_all_of_mmeb_by_default(snapshot: Path) -> None:
    data = set_up(snapshot)
    assert [rows.name for rows in data.train_set.subsets] == TRAIN_NAMES
    assert [sides.subset.name for sides in data.eval_sets] == list(CATALOG)
    assert data.eval_sets[2].subset.floors == {"chance": 0.5}  # HatefulMemes has two candidates


def test_the_rows_are_those_of_the_files_with_their_images(snapshot: Path) -> None:
    data = set_up(snapshot, train_subsets=["NIGHTS", "CIRR"])
    for name, paths in train_paths(data).items():
        assert paths == [row["qry_image_path"] for row in stored(snapshot, name)]
    with zipfile.ZipFile(snapshot / "MMEB-train" / "images_zip" / "CIRR.zip") as archive:
        path = train_paths(data)["CIRR"][0]
        assert path.removeprefix("images/") in archive.namelist()
    pairs, skipped, _ = data.train_set[Batch([(1, row) for row in range(12)])]
    assert skipped == []
    assert all(pair.query.image is not None and pair.negatives for pair in pairs)


def test_a_subset_goes_by_either_name(snapshot: Path) -> None:
    data = set_up(snapshot, train_subsets=["ImageNet-1K"], eval_subsets=["ImageNet-1K"])
    assert [rows.name for rows in data.train_set.subsets] == ["ImageNet_1K"]
    with pytest.raises(ValueError, match="evaluation subset `ImageNet_1K`; did you mean `ImageNet-1K`"):
        set_up(snapshot, train_subsets=["ImageNet_1K"], eval_subsets=["ImageNet_1K"])


def test_the_other_split_has_other_instructions(snapshot: Path) -> None:
    data = set_up(snapshot, train_subsets=["CIRR"], split="diverse_instruction")
    assert all(text.endswith(" Please.") for text in data.train_set.subsets[0].queries.texts.to_pylist())
    with pytest.raises(ValueError, match="did you mean `diverse_instruction`"):
        set_up(snapshot, train_subsets=["CIRR"], split="diverse")


def test_the_first_rows_or_a_random_sample(snapshot: Path) -> None:
    expected = [row["qry_image_path"] for row in stored(snapshot, "NIGHTS")]
    options = {"train_subsets": ["NIGHTS", "CIRR"], "num_samples": 6}
    assert train_paths(set_up(snapshot, **options))["NIGHTS"] == expected[:6]
    sample = train_paths(set_up(snapshot, **options, sample="random"))["NIGHTS"]
    assert len(sample) == 6
    assert sample != expected[:6]
    assert sample == [path for path in expected if path in sample]  # in the order of the file
    alone = set_up(snapshot, train_subsets=["NIGHTS"], num_samples=6, sample="random")
    assert train_paths(alone)["NIGHTS"] == sample
    other = set_up(snapshot, **options, sample="random", seed=1)
    assert train_paths(other)["NIGHTS"] != sample


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": "last"}, "`sample` must be one of 'first', 'random', got 'last'"),
        ({"sample": "random", "streaming": True}, "`streaming=False`, or `sample='first'`"),
        ({"mask_same_target": "some"}, "`mask_same_target`.*'some'"),
        ({"split": "diverse_instruction"}, "`split=diverse_instruction`.*has no splits"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_up("emoji", **options)


@pytest.mark.parametrize("streaming", [False, True])
def test_targets_are_masked_where_the_subset_is_classification(snapshot: Path, streaming: bool) -> None:
    for mask, expected in (
        ("classification", {by_train_name(name).meta_task == "classification" for name in ["VOC2007"]}),
        ("all", {True}),
        ("none", {False}),
    ):
        data = make_data(snapshot, **FEW, mask_same_target=mask, streaming=streaming)
        masks = {rows.name: rows.mask_same_target for rows in data.read_train()}
        assert {masks["VOC2007"]} == expected
        assert masks["CIRR"] == (mask == "all")


def test_a_folder_of_our_own_is_masked_by_its_table() -> None:
    masks = {rows.name: rows.mask_same_target for rows in make_data("emoji", num_samples=2).read_train()}
    assert {name for name, mask in masks.items() if mask} == {"subgroup", "group"}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_folder_of_our_own_streams_as_well(tmp_path: Path, suffix: str) -> None:
    data = set_up(make_root(tmp_path / "root", suffix), streaming=True)
    batches = list(data.train_dataloader())
    numbers = [number for batch in batches for number in batch["query"]["number"].tolist()]
    assert sorted(numbers) == [*range(1000, 1024), *range(2000, 2012)]
    assert not any(batch["skipped"] for batch in batches)


def test_a_stream_takes_the_first_rows_as_well(tmp_path: Path) -> None:
    data = set_up(make_root(tmp_path / "root"), streaming=True, num_samples=6)
    numbers = [number for batch in data.train_dataloader() for number in batch["query"]["number"].tolist()]
    assert sorted(numbers) == [*range(1000, 1006), *range(2000, 2006)]


def test_a_partial_snapshot_tells_what_can_be_chosen(partial: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lacks 18 of MMEB's 20 training subsets") as error:
        set_up(partial)
    assert "`train_subsets: [VOC2007, CIRR]`" in str(error.value)
    assert f"fanoise data --root {partial} --train_subsets=[ImageNet_1K,N24News," in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"`eval_subsets: \[GQA, CIRR\]`"):
        set_up(partial, train_subsets=["CIRR"])
    data = set_up(partial, **FEW)
    assert set(train_paths(data)) == {"CIRR", "VOC2007"}
    assert [sides.subset.name for sides in data.eval_sets] == ["GQA", "CIRR"]


def test_a_chosen_subset_that_is_not_there_is_named(partial: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"MMEB-train.*`NIGHTS`.*expected NIGHTS/original-\*"):
        set_up(partial, train_subsets=["NIGHTS"])


def test_a_missing_archive_comes_with_the_command_that_fetches_it(partial: Path) -> None:
    (partial / "MMEB-train" / "images_zip" / "CIRR.zip").unlink()
    command = (
        "hf download TIGER-Lab/MMEB-train images_zip/CIRR.zip --repo-type dataset "
        f"--local-dir {partial / 'MMEB-train'}"
    )
    with pytest.raises(FileNotFoundError, match=r"`CIRR`.*images") as error:
        set_up(partial, **FEW)
    assert command in str(error.value)


def test_unpacked_images_serve_as_well(partial: Path) -> None:
    train = partial / "MMEB-train"
    expected = set_up(partial, **FEW).train_set[Batch([(0, 0), (1, 5)])][0]
    for archive in (train / "images_zip").iterdir():
        zipfile.ZipFile(archive).extractall(train / "images")
    shutil.rmtree(train / "images_zip")
    found, skipped, _ = set_up(partial, **FEW).train_set[Batch([(0, 0), (1, 5)])]
    assert [pair.query.image.tobytes() for pair in found] == [pair.query.image.tobytes() for pair in expected]
    assert skipped == []


def test_only_evaluation_needs_only_the_evaluation_repository(
    partial: Path, recorder: Recorder, trainer: Callable[..., Trainer]
) -> None:
    shutil.rmtree(partial / "MMEB-train")
    trainer().validate(recorder, datamodule=make_data(partial, eval_subsets=["GQA"]))
    assert recorder.evaluated


@pytest.mark.parametrize(
    "root",
    ["hf://TIGER-Lab", "hf://datasets/TIGER-Lab/MMEB-train", "hf://datasets/", "hf:/datasets/TIGER-Lab"],
)
def test_a_hub_root_of_another_form_is_an_error(root: str) -> None:
    with pytest.raises(ValueError, match=f"`root={root}`: expected hf://datasets/<user>"):
        set_up(root)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hub_gives_what_the_snapshot_gives(hub: FakeHub, snapshot: Path, streaming: bool) -> None:
    batches = [
        [(batch["query"], batch["target"], batch["skipped"]) for batch in data.train_dataloader()]
        for data in (
            set_up(snapshot, **FEW, streaming=streaming),
            set_up(ROOT, **FEW, streaming=streaming),
        )
    ]
    assert str(batches[0]) == str(batches[1])
    assert all(skipped == [] for _, _, skipped in batches[0])


def test_only_what_the_subsets_need_is_downloaded(hub: FakeHub) -> None:
    set_up(ROOT, **FEW)
    got = {request.split("/", 6)[-1] for request in hub.requests if request.startswith("GET /datasets/")}
    assert {path.split("-0000")[0].removesuffix(".zip") for path in got} == {
        "README.md",
        "CIRR/original",
        "VOC2007/original",
        "images_zip/CIRR",
        "images_zip/VOC2007",
        "CIRR/test",
        "GQA/test",
        "images",
    }


def test_a_stream_reads_the_commit_that_it_was_opened_at(hub: FakeHub) -> None:
    list(make_data(ROOT, **FEW, streaming=True).read_train()[0].rows.read(0))
    got = {request.split("/")[5] for request in hub.requests if request.endswith(".parquet")}
    assert got == {hub.commit("MMEB-train")}


def test_a_stream_downloads_no_training_rows(hub: FakeHub) -> None:
    make_data(ROOT, **FEW, streaming=True).prepare_data()
    got = [request for request in hub.requests if "/MMEB-train/resolve/" in request]
    assert {request.split("/")[-1] for request in got} == {"README.md", "CIRR.zip", "VOC2007.zip"}


def test_the_second_run_asks_the_hub_for_nothing(hub: FakeHub, snapshot: Path) -> None:
    expected = train_paths(set_up(ROOT))
    assert expected == train_paths(set_up(snapshot))
    hub.requests.clear()
    hub.faults.append(Fault("* /*", 500))
    assert train_paths(set_up(ROOT)) == expected
    assert hub.requests == []


def test_what_the_cache_lost_is_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    expected = train_paths(set_up(ROOT, **FEW))
    for name in ("CIRR/original-00000-of-00001.parquet", "images_zip/CIRR.zip"):
        (file,) = (tmp_path / "cache").glob(f"*/snapshots/*/{name}")
        file.unlink()
    assert train_paths(set_up(ROOT, **FEW)) == expected


def test_a_stream_that_breaks_in_the_middle_goes_on_or_says_so(hub: FakeHub, snapshot: Path) -> None:
    options = {**FEW, "train_subsets": ["NIGHTS", "MSCOCO_i2t"], "streaming": True}
    expected = [str(batch) for batch in set_up(snapshot, **options).train_dataloader()]
    shard = "GET *NIGHTS/original-00001-of-00002.parquet"
    data = set_up(ROOT, **options)
    hub.faults.append(Fault(shard, "drop", times=2))
    assert [str(batch) for batch in data.train_dataloader()] == expected
    assert hub.faults[0].times == 0
    data = set_up(ROOT, **options)
    hub.faults.append(Fault(shard, 500))
    with pytest.raises(HubError, match=r"subset `NIGHTS`(?s:.*)original-00001(?s:.*)try again later"):
        list(data.train_dataloader())


def test_evaluation_downloads_no_training_data(
    hub: FakeHub, recorder: Recorder, trainer: Callable[..., Trainer]
) -> None:
    trainer().validate(recorder, datamodule=make_data(ROOT, **FEW))
    assert recorder.evaluated
    assert not [request for request in hub.requests if "MMEB-train" in request]


def test_what_was_not_downloaded_is_an_error_in_setup(hub: FakeHub) -> None:
    with pytest.raises(FileNotFoundError, match=r"MMEB-train. has not been downloaded.*prepare_data"):
        make_data(ROOT, **FEW).setup("fit")


def test_a_hub_that_is_down_stops_the_run_before_it_starts(hub: FakeHub) -> None:
    hub.faults.append(Fault("GET *CIRR.zip", 500))
    with pytest.raises(HubError, match=r"CIRR\.zip(?s:.*)try again later"):
        set_up(ROOT, **FEW)


def test_streams_are_opened_without_progress_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several threads at once they lose their lock: `thread_map` takes it away when it is done."""
    data = make_data(make_root(tmp_path / "root", ".parquet", sizes=(12, 12, 12)), streaming=True)
    monkeypatch.delattr(tqdm, "get_lock")
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 6
