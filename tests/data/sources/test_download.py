"""``fanoise data``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_hub import FakeHub, Fault, use

from fanoise_lightning.__main__ import main
from fanoise_lightning.data import MMEBDataModule
from fanoise_lightning.data.sources.download import download

CHOICE = {"train_subsets": ["CIRR", "ImageNet-1K"], "eval_subsets": ["GQA"]}


@pytest.fixture
def hub(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub(snapshot).running() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        yield hub


@pytest.fixture
def root(hub: FakeHub, tmp_path: Path) -> Path:
    """A download of a few subsets."""
    download(tmp_path / "mmeb", **CHOICE)
    return tmp_path / "mmeb"


def remove_member(path: Path, name: str) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            if member != name:
                archive.writestr(member, data)


def test_what_is_downloaded_is_a_root_to_train_and_evaluate_on(root: Path, snapshot: Path) -> None:
    checks = download(root, **CHOICE)
    assert [(check.name, check.rows, check.is_whole) for check in checks] == [
        ("CIRR", 12, True),
        ("ImageNet_1K", 12, True),
        ("GQA", 3, True),
    ]
    with zipfile.ZipFile(snapshot / "MMEB-train" / "images_zip" / "CIRR.zip") as archive:
        assert checks[0].images == len(archive.namelist())
    data = MMEBDataModule(root, **CHOICE)
    data.setup("fit")
    assert len(data.train_set) == 24


def test_the_home_of_the_user_is_a_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert all(check.is_whole for check in download("~/mmeb", **CHOICE))
    assert not Path("~").exists()


def test_a_complete_folder_is_checked_without_the_hub(hub: FakeHub, root: Path) -> None:
    hub.requests.clear()
    assert all(check.is_whole for check in download(root, **CHOICE))
    assert hub.requests == []


def test_the_rest_is_fetched(hub: FakeHub, root: Path) -> None:
    (root / "MMEB-train" / "images_zip" / "CIRR.zip").unlink()
    (root / "MMEB-train" / "ImageNet_1K" / "original-00001-of-00002.parquet").unlink()
    assert all(check.is_whole for check in download(root, **CHOICE))


def test_unpacked_images_need_no_archive(hub: FakeHub, root: Path) -> None:
    for archive in (root / "MMEB-train" / "images_zip").iterdir():
        zipfile.ZipFile(archive).extractall(root / "MMEB-train" / "images")
        archive.unlink()
    hub.requests.clear()
    assert all(check.is_whole for check in download(root, **CHOICE))
    assert hub.requests == []


def test_images_that_are_missing_are_counted_and_listed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pq.read_table(root / "MMEB-train" / "CIRR").to_pylist()
    path = rows[3]["pos_image_path"]
    remove_member(root / "MMEB-train" / "images_zip" / "CIRR.zip", path.removeprefix("images/"))
    with pytest.raises(SystemExit) as stop:
        main(["data", f"--root={root}", "--train_subsets=[CIRR,ImageNet-1K]", "--eval_subsets=[GQA]"])
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert f"missing of CIRR: {path}" in printed
    assert printed.count("missing of") == 1
    first, *others = download(root, **CHOICE)
    assert first.missing == (path,)
    assert all(check.is_whole for check in others)


def test_a_torn_archive_is_told_of_with_what_to_do(root: Path) -> None:
    archive = root / "MMEB-train" / "images_zip" / "CIRR.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    first, *others = download(root, **CHOICE)
    assert "CIRR.zip" in first.problem
    assert "remove it" in first.problem
    assert all(check.is_whole for check in others)


def test_rows_that_are_wrong_are_told_of(root: Path) -> None:
    file = root / "MMEB-eval" / "GQA" / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).drop_columns("tgt_text"), file)
    *_, last = download(root, **CHOICE)
    assert "column `tgt_text` is missing" in last.problem


def test_the_command_tells_what_is_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", f"--root={root}", "--train_subsets=[CIRR]", "--eval_subsets=[]"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "CIRR" in line]
    assert [cell.strip() for cell in line.strip("│ ").split("│")] == [
        "MMEB-train",
        "CIRR",
        "12",
        "21",
        "0",
        "whole",
    ]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--train_subsets=[CIR]", "unknown training subset `CIR`; did you mean `CIRR`"),
        ("--split=orginal", "did you mean `original`"),
        ("--source=TIGER-Lab", "`source=TIGER-Lab`: expected hf://datasets/<user>"),
    ],
)
def test_wrong_options_are_named(hub: FakeHub, tmp_path: Path, option: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["data", f"--root={tmp_path / 'mmeb'}", option])


def test_a_hub_that_is_down_is_one_line(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults.append(Fault("* /*", 500))
    with pytest.raises(SystemExit, match=r"fanoise: .*MMEB-train(?s:.*)try again later"):
        main(["data", f"--root={tmp_path / 'mmeb'}"])


def test_the_help_of_the_command_line_tells_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["fanoise"])  # Lightning warns of pytest's
    main(["--help"])
    assert "  data      download MMEB" in capsys.readouterr().out
