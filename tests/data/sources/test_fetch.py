"""The plan of a download, made from two folders, one of which stands in for the hub; and that it is kept when
the repository changes.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub, use

from fanoise_lightning.data.sources.fetch import (
    Plan,
    fetch,
    fetch_archives,
    image_groups,
    plan_archives,
    plan_rows,
)
from fanoise_lightning.data.sources.hub_repository import HUB, HubRepository
from fanoise_lightning.data.sources.repository import CARD, FolderRepository

CONFIGS = ["CIRR", "NIGHTS"]
CIRR = "CIRR/original-00000-of-00001.parquet"
NIGHTS = ("NIGHTS/original-00000-of-00002.parquet", "NIGHTS/original-00001-of-00002.parquet")
ARCHIVES = ("images_zip/CIRR.zip", "images_zip/NIGHTS.zip")


@pytest.fixture
def source(snapshot: Path) -> FolderRepository:
    return FolderRepository(snapshot / "MMEB-train")


@pytest.fixture
def local(source: FolderRepository, tmp_path: Path) -> FolderRepository:
    """The rows and archives of two subsets."""
    for file in (CARD, CIRR, *NIGHTS, *ARCHIVES):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(source.folder / file, tmp_path / file)
    return FolderRepository(tmp_path)


class Unreachable(FolderRepository):
    def find(self, pattern: str) -> list[str]:
        raise AssertionError("the hub was asked")


def groups(repository: FolderRepository) -> dict[str, str]:
    return {
        group: path
        for config in CONFIGS
        for group, path in image_groups(repository, config, "original").items()
    }


def test_on_an_empty_machine_all_rows_and_the_card_are_missing(source: FolderRepository) -> None:
    expected = Plan(present=(), missing=(CARD, CIRR, *NIGHTS))
    assert plan_rows(source, None, CONFIGS, "original") == expected


def test_what_is_complete_is_planned_without_the_hub(local: FolderRepository) -> None:
    hub = Unreachable(local.folder)
    rows = plan_rows(hub, local, CONFIGS, "original")
    assert rows == Plan((CARD, CIRR, *NIGHTS), ())
    assert plan_archives(hub, local, groups(local), rows) == Plan((CARD, CIRR, *NIGHTS, *ARCHIVES), ())


@pytest.mark.parametrize("damage", ["lost", "torn", "short"])
def test_a_subset_whose_rows_are_not_whole_is_missing(
    source: FolderRepository, local: FolderRepository, damage: str
) -> None:
    file = local.folder / NIGHTS[1]
    if damage == "lost":
        file.unlink()
    elif damage == "torn":
        file.write_bytes(file.read_bytes()[:-20])
    else:
        pq.write_table(pq.read_table(file).slice(1), file)
    assert plan_rows(source, local, CONFIGS, "original") == Plan((CIRR,), (CARD, *NIGHTS))


def test_an_archive_that_the_rows_need_is_missing(source: FolderRepository, local: FolderRepository) -> None:
    (local.folder / ARCHIVES[1]).unlink()
    rows = Plan((CARD,), ())
    assert plan_archives(source, local, groups(local), rows) == Plan((CARD, ARCHIVES[0]), (ARCHIVES[1],))


def test_unpacked_images_need_no_archive(local: FolderRepository) -> None:
    for archive in ARCHIVES:
        zipfile.ZipFile(local.folder / archive).extractall(local.folder / "images")
        (local.folder / archive).unlink()
    hub = Unreachable(local.folder)
    assert plan_archives(hub, local, groups(local), Plan((CARD,), ())) == Plan((CARD,), ())


def test_one_archive_for_all_subsets_is_planned_once(snapshot: Path, tmp_path: Path) -> None:
    source = FolderRepository(snapshot / "MMEB-eval")
    found = image_groups(source, "CIRR", "test") | image_groups(source, "GQA", "test")
    assert set(found) == {"CIRR", "GQA"}
    plan = plan_archives(source, FolderRepository(tmp_path), found, Plan((), ()))
    assert plan == Plan((), ("images.zip",))


def test_of_two_archives_that_may_hold_the_images_the_likelier_is_planned(
    local: FolderRepository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (local.folder / "images.zip").touch()  # as the source
    empty = FolderRepository(tmp_path_factory.mktemp("empty"))
    plan = plan_archives(local, empty, {"CIRR": "images/CIRR/1.jpg"}, Plan((), ()))
    assert plan == Plan((), ("images_zip/CIRR.zip",))


def test_an_archive_that_does_not_exist_is_left_to_those_who_open_images(
    source: FolderRepository, local: FolderRepository
) -> None:
    plan = plan_archives(source, local, {"other": "images/other/1.jpg"}, Plan((), ()))
    assert plan == Plan((), ())


@pytest.fixture
def hub(
    local: FolderRepository, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A hub with the two subsets as its first commit."""
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(local.folder, root / "first" / "MMEB-train")
    with FakeHub(root / "first").running() as hub:
        use(hub, root / "cache", monkeypatch)
        yield hub


def next_commit(hub: FakeHub) -> None:
    """The same files with another card: what is downloaded lies in another folder of the cache."""
    second = hub.root.parent / "second"
    shutil.copytree(hub.root, second)
    with (second / "MMEB-train" / CARD).open("a") as card:
        card.write("another line\n")
    hub.root = second


def open_hub() -> HubRepository:
    return HubRepository(f"{HUB}TIGER-Lab/MMEB-train")


def test_a_file_that_the_cache_lost_after_the_repository_changed(hub: FakeHub) -> None:
    """The other files come into the folder of the new commit too."""
    folder = fetch(open_hub(), CONFIGS, "original").folder
    (folder / ARCHIVES[0]).unlink()
    next_commit(hub)
    hub.requests.clear()
    moved = fetch(open_hub(), CONFIGS, "original")
    assert moved.folder != folder
    assert open_hub().cached().folder == moved.folder
    assert all((moved.folder / file).is_file() for file in (CARD, CIRR, *NIGHTS, *ARCHIVES))
    sent = [request.split("/", 6)[-1] for request in hub.requests if request.startswith("GET /datasets/")]
    assert sent == [CARD]  # the rest is the same as before


def test_the_archives_of_a_stream_follow_the_repository(hub: FakeHub) -> None:
    folder = fetch_archives(open_hub(), CONFIGS).folder
    next_commit(hub)
    moved = fetch_archives(open_hub(), CONFIGS).folder
    assert moved != folder
    assert all((moved / file).is_file() for file in (CARD, *ARCHIVES))
