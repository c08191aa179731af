from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from data_roots import collate, train_row, write_image, write_rows, zip_folder

from fanoise_lightning.data.images import roots as image_roots
from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.images.roots import ImageRoot, archive_names, first_paths
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.pairs import PairDataModule

TRAIN, EVAL = "images/A-OKVQA/Train/1.png", "ScienceQA/1.png"  # as in the rows of MMEB-train and MMEB-eval
FETCH = "hf download TIGER-Lab/MMEB-train {archive}"


def write_archive(path: Path, *members: str, grey: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = write_image(path.parent / "image.png", grey)
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.write(image, member)
    image.unlink()
    return path


def grey(root: ImageRoot, path: str) -> int:
    return ImageStore(root).open(path).getpixel((0, 0))[0]


def as_paths(*paths: str) -> pa.Array:
    return pa.array(paths, pa.large_string())


@pytest.fixture(params=["folder", "zip"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> ImageRoot:
    """One image (grey 7), a truncated one and a text file, in a folder or in its zip."""
    folder = tmp_path / "images"
    good = write_image(folder / "sub" / "good.png", 7)
    (folder / "cut.png").write_bytes(good.read_bytes()[:-30])
    (folder / "note.png").write_text("not an image")
    return ImageRoot(folder if request.param == "folder" else zip_folder(folder))


@pytest.mark.parametrize("path", ["sub/good.png", "./sub//good.png", "images/sub/good.png"])
def test_images_are_found(root: ImageRoot, path: str) -> None:
    assert grey(root, path) == 7
    assert path in root
    assert path + "x" not in root


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("sub/none.png", "no such file"),
        ("sub", "no such file"),
        ("", "no such file"),
        ("x" * 300 + "/x.png", "no such file"),
        ("cut.png", "OSError|SyntaxError"),
        ("note.png", "it is not an image"),
        ("../images/sub/good.png", "leaves the image root"),
        ("sub/../../images/sub/good.png", "leaves the image root"),
        ("/sub/good.png", "leaves the image root"),
        ("C:\\good.png", "leaves the image root"),
        ("sub\\..\\good.png", "leaves the image root"),
        ("sub/good.png\0", "leaves the image root"),
    ],
)
def test_what_cannot_be_read_is_one_error(root: ImageRoot, path: str, cause: str) -> None:
    with pytest.raises(ImageError, match=cause) as error:
        ImageStore(root).open(path)
    assert f"image `{path}` in `{root.path}`: " in str(error.value)


@pytest.fixture(params=["/proc/self/fd", "/nowhere"], ids=["on Linux", "elsewhere"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_roots, "_OPEN_FILES", request.param)


@pytest.mark.usefixtures("system")
def test_symlinks_must_stay_inside(tmp_path: Path) -> None:
    secret = write_image(tmp_path / "images and secrets" / "secret.png")
    write_image(tmp_path / "images" / "good.png")
    (tmp_path / "images" / "out.png").symlink_to(secret)
    (tmp_path / "images" / "folder").symlink_to(secret.parent)
    (tmp_path / "images" / "in.png").symlink_to("good.png")
    root = ImageRoot(tmp_path / "images")
    assert grey(root, "in.png") == 128
    for path in ("out.png", "folder/secret.png"):
        with pytest.raises(ImageError, match="symbolic link leaves the image root"):
            ImageStore(root).open(path)


def test_a_symlink_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, os.fspath(write_image(tmp_path / "secret.png")))
    with pytest.raises(ImageError, match="it is not an image"):
        ImageStore(ImageRoot(tmp_path / "x.zip")).open("link.png")


@pytest.mark.usefixtures("system")
def test_the_folder_of_images_may_be_a_link(tmp_path: Path) -> None:
    write_image(tmp_path / "disk" / "A-OKVQA" / "Train" / "1.png", 3)
    write_image(tmp_path / "secret.png")
    (tmp_path / "disk" / "out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "images").symlink_to(tmp_path / "disk")
    root = ImageRoot(tmp_path / "root")
    assert grey(root, TRAIN) == grey(root, "A-OKVQA/Train/1.png") == 3
    with pytest.raises(ImageError, match="symbolic link leaves the image root"):
        root.read("images/out.png")


def test_huge_files_are_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "big.png")
    monkeypatch.setattr("fanoise_lightning.data.images.decode.MAX_BYTES", 10)
    with pytest.raises(ImageError, match="bytes are more than 10"):
        ImageRoot(tmp_path).read("big.png")


def test_a_missing_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none` is neither a folder nor a zip archive"):
        ImageRoot(tmp_path / "none")


def test_a_root_that_is_a_broken_archive_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_text("no archive")
    with pytest.raises(ValueError, match=r"broken\.zip` is not a zip archive, or is truncated"):
        ImageRoot(tmp_path / "broken.zip")


@pytest.mark.parametrize(
    ("archive", "member", "path"),
    [
        ("images_zip/A-OKVQA.zip", "A-OKVQA/Train/1.png", TRAIN),
        ("images_zip/A-OKVQA.zip", "images/A-OKVQA/Train/1.png", TRAIN),
        ("images.zip", "images/A-OKVQA/Train/1.png", TRAIN),
        ("images.zip", EVAL, EVAL),
        ("images.zip", f"images/{EVAL}", EVAL),
        ("images_zip/ScienceQA.zip", EVAL, EVAL),
        ("images.zip", "top.png", "top.png"),
    ],
)
def test_archives_of_a_repository_are_read_in_place(
    tmp_path: Path, archive: str, member: str, path: str
) -> None:
    write_archive(tmp_path / archive, member)
    root = ImageRoot(tmp_path)
    root.prepare(as_paths(path), "s")
    assert grey(root, path) == 7
    assert grey(ImageRoot(tmp_path), path) == 7  # without preparation
    assert path in root
    assert path + "x" not in root
    with pytest.raises(ImageError, match=re.escape(f"in `{Path(archive).name}` (which has `{member}`)")):
        root.read(path.replace("1", "2").replace("top", "none"))


@pytest.mark.parametrize("unpacked", [TRAIN, "A-OKVQA/Train/1.png"])
def test_unpacked_images_win_over_archives(tmp_path: Path, unpacked: str) -> None:
    members = ("A-OKVQA/Train/1.png", "A-OKVQA/Train/2.png")
    write_archive(tmp_path / "images_zip" / "A-OKVQA.zip", *members, grey=7)
    write_image(tmp_path / unpacked, 3)
    root = ImageRoot(tmp_path)
    assert grey(root, TRAIN) == 3
    assert grey(root, TRAIN.replace("1", "2")) == 7  # unpacking was interrupted


def test_the_path_as_it_is_comes_first(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "x.png", 1)
    write_image(tmp_path / "images" / "a" / "x.png", 2)
    root = ImageRoot(tmp_path)
    assert [grey(root, path) for path in ("a/x.png", "images/a/x.png")] == [1, 2]


def test_archives_may_be_links_as_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    blob = write_archive(tmp_path / "blobs" / "0f3a", "A-OKVQA/Train/1.png")
    (tmp_path / "snapshot" / "images_zip").mkdir(parents=True)
    (tmp_path / "snapshot" / "images_zip" / "A-OKVQA.zip").symlink_to(blob)
    assert grey(ImageRoot(tmp_path / "snapshot"), TRAIN) == 7


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The archives that are opened from now on."""
    names: list[str] = []
    whole = image_roots.Archive
    monkeypatch.setattr(image_roots, "Archive", lambda path: names.append(path.name) or whole(path))
    return names


def test_only_the_archives_that_are_needed_are_opened_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A", "B", "C"):
        write_archive(tmp_path / "images_zip" / f"{name}.zip", f"{name}/1.png")
    write_image(tmp_path / "images" / "C" / "1.png")
    names = opened(monkeypatch)
    root = ImageRoot(tmp_path)
    root.prepare(as_paths("images/B/1.png", "images/B/2.png", "images/C/1.png"), "s")
    root.prepare(as_paths("images/B/3.png"), "t")
    assert names == ["B.zip"]
    grey(root, "images/B/1.png")
    grey(pickle.loads(pickle.dumps(root)), "images/B/1.png")
    assert names == ["B.zip"]


def read_in_child(root: ImageRoot, paths: Sequence[str], send: multiprocessing.Queue) -> None:
    image_roots.Archive = None  # type: ignore[assignment,misc]  # opening another would fail
    send.put([grey(root, path) for path in paths])


def test_forked_processes_share_what_was_prepared(tmp_path: Path) -> None:
    write_archive(tmp_path / "images_zip" / "A-OKVQA.zip", "A-OKVQA/Train/1.png")
    root = ImageRoot(tmp_path)
    root.prepare(as_paths(TRAIN), "s")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=read_in_child, args=(root, [TRAIN] * 20, answers)) for _ in range(2)]
    for child in children:
        child.start()
    assert [answers.get(timeout=20) for _ in children] == [[7] * 20] * 2
    for child in children:
        child.join()


def test_a_missing_archive_is_named_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    root = ImageRoot(tmp_path, FETCH)
    command = "fetch it: `hf download TIGER-Lab/MMEB-train images_zip/A-OKVQA.zip`"
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"subset `A-OKVQA`: its images (the first: `{TRAIN}`)")
    ):
        root.prepare(as_paths(TRAIN), "A-OKVQA")
    with pytest.raises(FileNotFoundError, match=re.escape(command)):
        root.prepare(as_paths(TRAIN), "A-OKVQA")
    with pytest.raises(ImageError, match=re.escape(command)):
        root.read(TRAIN)
    with pytest.raises(FileNotFoundError, match=r"unpacked or in `images_zip/A-OKVQA\.zip` or `images\.zip`"):
        ImageRoot(tmp_path).prepare(as_paths(TRAIN), "A-OKVQA")


def test_a_stray_path_is_a_broken_image_and_stops_nothing(tmp_path: Path) -> None:
    write_archive(tmp_path / "images_zip" / "A-OKVQA.zip", "A-OKVQA/Train/1.png")
    root = ImageRoot(tmp_path, FETCH)
    root.prepare(as_paths(TRAIN, "images/Stray/1.png"), "A-OKVQA")
    with pytest.raises(ImageError, match=r"no such file, unpacked or in `images_zip/Stray\.zip`"):
        root.read("images/Stray/1.png")


@pytest.mark.parametrize("prepared", [True, False])
def test_an_archive_that_ends_early_is_named_with_the_command(tmp_path: Path, prepared: bool) -> None:
    path = write_archive(tmp_path / "images_zip" / "A-OKVQA.zip", "A-OKVQA/Train/1.png")
    os.truncate(path, path.stat().st_size - 10)
    root = ImageRoot(tmp_path, FETCH)
    with pytest.raises(ValueError, match=r"A-OKVQA\.zip` is not a zip archive, or is truncated") as error:
        root.prepare(as_paths(TRAIN), "A-OKVQA") if prepared else ImageStore(root).open(TRAIN)
    assert "remove it and fetch it again: `hf download TIGER-Lab/MMEB-train images_zip/A-OKVQA.zip`" in str(
        error.value
    )


def test_an_archive_that_is_gone_is_an_image_error(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "images.zip", "a.png")
    root = ImageRoot(path)
    path.unlink()
    with pytest.raises(ImageError, match=r"image `a\.png` in .*: FileNotFoundError: "):
        ImageStore(root).open("a.png")


def test_a_group_of_paths_shares_its_archives() -> None:
    paths = ["b.png", "images/A/1.png", "B/x/2.png", "A/3.png", "images/c.png", "images/A/x/4.png"]
    groups = first_paths(as_paths(*paths))
    assert groups == {"": "b.png", "A": "images/A/1.png", "B": "B/x/2.png"}
    for path in paths:
        group = next(group for group, first in groups.items() if archive_names(first) == archive_names(path))
        assert archive_names(path)[-1] == "images.zip"
        assert archive_names(path)[:-1] == ((f"images_zip/{group}.zip",) if group else ())
    assert first_paths(as_paths()) == {}


def pairs(folder: Path, count: int = 8) -> Path:
    return write_rows(folder / "s.jsonl", [train_row(row, f"images/A/{row % 2}.png") for row in range(count)])


def test_a_data_module_opens_the_archives_before_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A", "B"):
        write_archive(tmp_path / "images_zip" / f"{name}.zip", f"{name}/0.png", f"{name}/1.png")
    names = opened(monkeypatch)
    data = PairDataModule(pairs(tmp_path), batch_size=2, val_fraction=0.5, num_workers=2, collate=collate)
    data.setup()
    assert names == ["A.zip"]  # once for training and validation
    assert all(set(batch["query"]["grey"].tolist()) == {7} for batch in data.train_dataloader())
    assert names == ["A.zip"]


def test_a_data_module_stops_at_once_if_an_archive_is_missing(tmp_path: Path) -> None:
    data = PairDataModule(pairs(tmp_path), val_fraction=0.5)
    with pytest.raises(
        FileNotFoundError, match=r"s\.jsonl`: 0 of 2 pictures found under .*`images/A/\d\.png`"
    ):
        data.setup()
