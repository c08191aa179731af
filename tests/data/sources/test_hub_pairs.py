"""Data sets on the hub as sources of pairs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub, Fault, use

from fanoise_lightning.data.sources.any_source import open_source
from fanoise_lightning.data.sources.hub_errors import HubError

CONFIGS = """---
configs:
- config_name: en
  data_files: [{split: train, path: data/train.parquet}]
- config_name: de
  data_files: [{split: train, path: data/train.parquet}]
---
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    table = pa.table({"query": ["a", "b"], "answer": ["c", "d"]})
    for name in ("pairs", "script", "configs", "tests_only"):
        file = tmp_path / "hub" / name / "data" / f"{'test' if name == 'tests_only' else 'train'}.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(table, file)
    (tmp_path / "hub" / "script" / "script.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    (tmp_path / "hub" / "configs" / "README.md").write_text(CONFIGS)
    with FakeHub(tmp_path / "hub").running() as running:
        use(running, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
        monkeypatch.setattr("fanoise_lightning._hub.WAIT", 0.5)
        yield running


@pytest.fixture
def go_offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def go() -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)

    return go


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["TIGER-Lab/pairs", "hf://datasets/TIGER-Lab/pairs"])
def test_the_split_train_is_read_and_stays_in_the_cache(name: str, go_offline: Callable[[], None]) -> None:
    for _ in range(2):
        source = open_source(name)
        table, _ = source.read({"query": "text", "answer": "text"})
        assert table.select(["query", "answer"]).to_pydict() == {"query": ["a", "b"], "answer": ["c", "d"]}
        assert (source.name, source.absolute) == ("TIGER-Lab/pairs", False)
        go_offline()


@pytest.mark.parametrize(
    ("name", "faults", "message"),
    [
        ("nothing", [], "404(?s:.*)check the name"),
        ("pairs", [Fault("*", 401)], "hf auth login"),
        ("pairs", [Fault("*", 403)], "hf auth login"),
        ("pairs", [Fault("*/resolve/*", 403)], "hf auth login"),  # gated: only its name is public
        ("pairs", [Fault("*", 500)], "500(?s:.*)try again later"),
        ("pairs", [Fault("*", "hang")], "(?s:.*)try again later"),
        ("script", [], "code of others is never run"),
    ],
)
def test_a_hub_that_gives_nothing_is_one_quick_error(
    hub: FakeHub, tmp_path: Path, name: str, faults: list[Fault], message: str
) -> None:
    hub.faults += faults
    start = time.monotonic()
    with pytest.raises(HubError, match=f"`TIGER-Lab/{name}`, which is no file (?s:.*){message}"):
        open_source(f"TIGER-Lab/{name}")
    assert time.monotonic() - start < 5
    assert not (tmp_path / "run").exists()


def test_offline_is_said_without_a_request(hub: FakeHub, go_offline: Callable[[], None]) -> None:
    go_offline()
    with pytest.raises(HubError, match=r"`TIGER-Lab/pairs`(?s:.*)unset HF_HUB_OFFLINE"):
        open_source("TIGER-Lab/pairs")
    assert not hub.requests


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TIGER-Lab/configs", "(?s:.*)'en', 'de'"),
        ("TIGER-Lab/tests_only", '.*split "train"'),
        ("hf://datasets/TIGER-Lab/pairs@main", ".*must be `user/name`"),
        ("hf://datasets/TIGER-Lab/pairs/data/train.parquet", ".*must be `user/name`"),
    ],
)
def test_a_choice_is_left_to_load_dataset(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}(?s:.*)pass `datasets\.load_dataset"):
        open_source(name)
