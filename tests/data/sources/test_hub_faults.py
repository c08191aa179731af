"""A hub that misbehaves: all rows come, or one clear error does, in bounded time."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from fake_hub import FakeHub, Fault, use

from fanoise_lightning.data.rows.records import TRAIN_COLUMNS
from fanoise_lightning.data.sources import hub_rows
from fanoise_lightning.data.sources.hub_errors import attempt
from fanoise_lightning.data.sources.hub_repository import HUB, HubError, HubRepository
from fanoise_lightning.data.sources.repository import FolderRepository, Repository

CONFIG, SPLIT = "NIGHTS", "original"  # of two shards
SHARD = "*/resolve/*/NIGHTS/original-00001-of-00002.parquet"
ANY = "* /*"
MODES = pytest.mark.parametrize("streaming", [False, True], ids=["download", "stream"])


@pytest.fixture
def hub(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub(snapshot).running() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        start = time.monotonic()
        yield hub
        assert time.monotonic() - start < 20


@pytest.fixture
def repository(hub: FakeHub) -> HubRepository:
    return HubRepository(f"{HUB}TIGER-Lab/MMEB-train")


def read(repository: Repository, streaming: bool) -> list[str]:
    """The query images of all rows."""
    if isinstance(repository, HubRepository) and not streaming:
        shards = repository.shards(CONFIG, SPLIT)
        repository = repository.download(["README.md", *shards])
        assert repository.num_rows(CONFIG, SPLIT) == 12
    rows = repository.stream(CONFIG, SPLIT, TRAIN_COLUMNS)
    tables = [table for shard in range(rows.num_shards) for table in rows.read(shard)]
    return [path for table in tables for path in table["qry_image_path"].to_pylist()]


@pytest.fixture
def expected(snapshot: Path) -> list[str]:
    paths = read(FolderRepository(snapshot / "MMEB-train"), streaming=True)
    assert len(set(paths)) == 12
    return paths


@MODES
def test_a_hub_in_good_health(repository: HubRepository, expected: list[str], streaming: bool) -> None:
    assert read(repository, streaming) == expected


@MODES
@pytest.mark.parametrize("pattern", [f"GET {SHARD}", "GET /api/*"], ids=["rows", "api"])
@pytest.mark.parametrize("kind", [500, "drop", "hang"])
def test_faults_that_pass_lose_no_row(
    hub: FakeHub,
    repository: HubRepository,
    expected: list[str],
    streaming: bool,
    pattern: str,
    kind: int | str,
) -> None:
    hub.faults.append(Fault(pattern, kind, times=2))
    assert read(repository, streaming) == expected
    assert hub.faults[0].times == 0


@MODES
@pytest.mark.parametrize("status", [503, 504, 429])
def test_an_overloaded_hub_is_asked_again(
    hub: FakeHub, repository: HubRepository, expected: list[str], streaming: bool, status: int
) -> None:
    hub.faults.append(Fault(f"GET {SHARD}", status, times=2))
    assert read(repository, streaming) == expected


@pytest.mark.parametrize("kind", [500, "drop", "hang"])
def test_faults_when_a_file_is_opened_pass_as_well(
    hub: FakeHub, repository: HubRepository, expected: list[str], kind: int | str
) -> None:
    hub_rows._file_system.cache_clear()  # it remembers that the repository exists
    repository.shards(CONFIG, SPLIT)
    hub.faults.append(Fault("GET /api/*", kind, times=2))
    assert read(repository, streaming=True) == expected
    assert hub.faults[0].times == 0


def test_a_stream_asks_neither_for_sizes_nor_for_folders(hub: FakeHub, repository: HubRepository) -> None:
    """`huggingface_hub` would wait for the answer without a limit."""
    hub_rows._file_system.cache_clear()
    read(repository, streaming=True)
    assert not [request for request in hub.requests if "/paths-info/" in request or "/tree/" in request]


@pytest.mark.parametrize("kind", [500, "hang"])
def test_faults_before_a_download_pass_as_well(
    hub: FakeHub, repository: HubRepository, expected: list[str], kind: int | str
) -> None:
    hub.faults.append(Fault(f"HEAD {SHARD}", kind, times=2))
    assert read(repository, streaming=False) == expected


@MODES
@pytest.mark.parametrize("kind", [500, "drop", "hang"])
def test_a_shard_that_never_comes_is_one_error_that_names_it(
    hub: FakeHub, repository: HubRepository, streaming: bool, kind: int | str
) -> None:
    hub.faults.append(Fault(f"* {SHARD}", kind))
    with pytest.raises(HubError, match=r"NIGHTS/original-00001-of-00002\.parquet(?s:.*)try again later"):
        read(repository, streaming)


@MODES
@pytest.mark.parametrize("kind", [500, "hang"])
def test_a_hub_that_is_down_is_one_error_that_names_the_repository(
    hub: FakeHub, repository: HubRepository, streaming: bool, kind: int | str
) -> None:
    hub.faults.append(Fault(ANY, kind))
    with pytest.raises(HubError, match=r"hf://datasets/TIGER-Lab/MMEB-train(?s:.*)try again later"):
        read(repository, streaming)


def test_a_silent_hub_is_not_waited_for_again_when_the_library_gave_up(
    hub: FakeHub, repository: HubRepository, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults.append(Fault(f"HEAD {SHARD}", "hang"))
    with pytest.raises(HubError, match="original-00001"):
        read(repository, streaming=False)
    assert "trying again" not in caplog.text
    hub.faults[:] = [Fault(f"GET {SHARD}", 500)]
    with pytest.raises(HubError, match="original-00001"):
        read(repository, streaming=False)
    assert "trying again" in caplog.text


@MODES
def test_a_shard_that_is_listed_but_not_there(
    hub: FakeHub, repository: HubRepository, streaming: bool
) -> None:
    hub.faults.append(Fault(f"* {SHARD}", 404))
    with pytest.raises(HubError, match=r"original-00001-of-00002\.parquet(?s:.*)lacks the file"):
        read(repository, streaming)
    assert sum(request.endswith(SHARD.split("*")[-1]) for request in hub.requests) == 1


@MODES
@pytest.mark.parametrize("kind", [401, 403])
def test_a_door_that_is_closed(hub: FakeHub, repository: HubRepository, streaming: bool, kind: int) -> None:
    hub.faults.append(Fault(ANY, kind))
    with pytest.raises(HubError, match="hf auth login"):
        read(repository, streaming)
    assert len(hub.requests) == 1  # no use in asking again


def test_a_repository_that_does_not_exist(hub: FakeHub) -> None:
    with pytest.raises(HubError, match=r"MMEB-trein(?s:.*)check the name"):
        HubRepository(f"{HUB}TIGER-Lab/MMEB-trein").shards(CONFIG, SPLIT)


class Answer(Exception):
    def __init__(self, status: int) -> None:
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), 3),
        (OSError(errno.ENOSPC, "disk full"), 1),
        *((Answer(status), 3) for status in (408, 429, 500, 503)),
        *((Answer(status), 1) for status in (401, 403, 404)),
    ],
)
def test_only_what_may_pass_is_tried_again(
    error: Exception, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanoise_lightning.data.sources.hub_errors.WAITS", (0, 0))
    calls = []

    def action() -> None:
        calls.append(1)
        raise RuntimeError from error

    with pytest.raises(HubError, match=r"`what`: RuntimeError"):
        attempt(action, "`what`")
    assert len(calls) == attempts


def test_offline_says_so(repository: HubRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="unset HF_HUB_OFFLINE"):
        repository.shards(CONFIG, SPLIT)


def test_a_broken_download_goes_on_where_it_broke(
    hub: FakeHub, repository: HubRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1)  # of 10 MB: what is kept
    hub.faults.append(Fault(f"GET {SHARD}", "drop", times=1))
    folder = repository.download(repository.shards(CONFIG, SPLIT)).folder
    size = (folder / SHARD.replace("*/resolve/*/", "")).stat().st_size
    assert hub.ranges == [f"bytes={size // 2}-"]


def test_a_folder_that_has_something_is_not_taken_for_the_whole(
    hub: FakeHub, repository: HubRepository, tmp_path: Path
) -> None:
    first, _ = repository.shards(CONFIG, SPLIT)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "another.parquet").touch()
    hub.faults.append(Fault(ANY, 500))
    with pytest.raises(HubError, match=f"`{first}`(?s:.*)try again later"):
        repository.download([first], tmp_path / "folder")


@pytest.mark.parametrize("number", [None, 12, 13])
def test_rows_on_the_hub_are_counted_and_compared_with_the_card(
    hub: FakeHub, repository: HubRepository, snapshot: Path, tmp_path: Path, number: int | None
) -> None:
    hub.root = tmp_path / "copy"
    shutil.copytree(snapshot / "MMEB-train" / CONFIG, hub.root / "MMEB-train" / CONFIG)
    files = f"[{{split: {SPLIT}, path: {CONFIG}/{SPLIT}-*}}]"
    card = f"configs: [{{config_name: {CONFIG}, data_files: {files}}}]\n"
    if number is not None:
        splits = f"[{{name: {SPLIT}, num_examples: {number}}}]"
        card += f"dataset_info: {{config_name: {CONFIG}, splits: {splits}}}\n"
    (hub.root / "MMEB-train" / "README.md").write_text(f"---\n{card}---\n")
    if number == 13:
        with pytest.raises(ValueError, match=r"MMEB-train.*`NIGHTS`.*2 files hold 12 rows.*says 13"):
            repository.num_rows(CONFIG, SPLIT)
    else:
        assert repository.num_rows(CONFIG, SPLIT) == 12


def test_what_is_there_is_not_downloaded_again(hub: FakeHub, repository: HubRepository) -> None:
    shards = repository.shards(CONFIG, SPLIT)
    repository.download(shards)
    hub.requests.clear()
    repository.download(shards)
    assert not [request for request in hub.requests if "resolve" in request]


def test_the_process_keeps_its_settings(hub: FakeHub, repository: HubRepository) -> None:
    """A hub's client and the settings of `datasets` are those of the whole process."""
    session = huggingface_hub.utils.get_session()
    hooks = {name: list(found) for name, found in session.event_hooks.items()}
    settings = {name: value for name, value in vars(datasets.config).items() if name.startswith("STREAMING_")}
    read(repository, streaming=True)
    read(repository, streaming=False)
    hub.faults.append(Fault(ANY, 401))
    with pytest.raises(HubError):
        read(HubRepository(repository.location), streaming=True)
    assert huggingface_hub.utils.get_session() is session
    assert {name: list(found) for name, found in session.event_hooks.items()} == hooks
    assert {
        name: value for name, value in vars(datasets.config).items() if name.startswith("STREAMING_")
    } == settings


def test_a_row_group_that_breaks_goes_on_behind_the_rows_that_came(
    hub: FakeHub, repository: HubRepository, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing comes twice: what was given out is skipped when the file is opened anew."""
    monkeypatch.setattr("fanoise_lightning.data.rows.shards.CHUNK", 2)
    rows = repository.stream(CONFIG, SPLIT, TRAIN_COLUMNS)
    found = []
    for shard in range(rows.num_shards):
        for table in rows.read(shard):
            found += table["qry_image_path"].to_pylist()
            hub.faults[:] = [Fault(f"GET {SHARD}", "drop", times=1)]
    assert found == expected
