"""Images whose names in the rows are not quite those of their files."""

from __future__ import annotations

import re
import unicodedata
import zipfile
from pathlib import Path

import pytest
from data_roots import collate, train_row, write_image, write_rows
from hypothesis import given
from hypothesis import strategies as st

from fanoise_lightning.data.images.archives import Archive
from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.images.roots import ImageRoot, archive_names
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.pairs import PairDataModule
from fanoise_lightning.data.rows.paths import folded
from fanoise_lightning.data.rows.records import read_train

NFC, NFD = (unicodedata.normalize(form, "Café/Ångström.png") for form in ("NFC", "NFD"))


def make_root(folder: Path, kind: str, *names: str) -> ImageRoot:
    """Images of these names, grey 0, 1, ..., unpacked or in an archive, as they are written."""
    if kind == "folder":
        for grey, name in enumerate(names):
            write_image(folder / "root" / name, grey)
        return ImageRoot(folder / "root")
    with zipfile.ZipFile(folder / "root.zip", "w") as archive:
        for grey, name in enumerate(names):
            archive.writestr(name, write_image(folder / "image.png", grey).read_bytes())
    return ImageRoot(folder / "root.zip")


def grey(root: ImageRoot, path: str) -> int:
    return ImageStore(root).open(path).getpixel((0, 0))[0]


kinds = pytest.mark.parametrize("kind", ["folder", "zip"])


@kinds
@pytest.mark.parametrize(
    ("there", "asked"),
    [
        (NFC, NFD),
        (NFD, NFC),
        ("Train/A.JPG", "train/a.jpg"),
        ("train/a.jpg", "Train/A.JPG"),
        ("train/a.jpg", "train\\a.jpg"),
        ("train/a.jpg", ".\\Train\\A.jpg"),
        (NFD, NFC.upper().replace("/", "\\")),
        ("images/train/a.jpg", "Train/a.jpg"),
        ("train/a.jpg", "Images/train/A.jpg"),
        ("Images/train/a.jpg", "images/train/a.jpg"),
        ("train\\a.jpg", "train/a.jpg"),
        ("train/more\\A.jpg", "train/more/a.jpg"),
        ("images\\train\\a.jpg", "train/a.jpg"),
    ],
)
def test_another_spelling_of_one_name_is_read(tmp_path: Path, kind: str, there: str, asked: str) -> None:
    root = make_root(tmp_path, kind, "other.png", there, "train/b.jpg")
    assert grey(root, asked) == 1
    assert asked in root
    assert asked.replace(".", "x.") not in root


@kinds
@pytest.mark.parametrize(
    ("there", "written"),
    [
        *((there, written) for there in (NFC, NFD) for written in (NFC, NFD, f".//{NFD}")),
        *((there, "train\\a.jpg") for there in ("train/a.jpg", "train\\a.jpg")),
    ],
)
def test_rows_in_any_spelling_find_the_file(tmp_path: Path, kind: str, there: str, written: str) -> None:
    root = make_root(tmp_path, kind, "other.png", there)
    rows = read_train(write_rows(tmp_path / "rows.jsonl", [train_row(0, written)]), "rows")
    assert grey(root, rows.queries[0].image) == 1


def test_files_of_a_mac_are_found_without_listing_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_root(tmp_path, "folder", NFD)
    monkeypatch.setattr("fanoise_lightning.data.images.roots._search", lambda *_: pytest.fail("listed"))
    root._archives = dict.fromkeys(archive_names(NFC))  # known to be missing
    assert grey(root, NFC) == 0


@kinds
def test_the_very_name_wins(tmp_path: Path, kind: str) -> None:
    names = ("a.png", "A.png", NFC, NFD, "a.PNG")
    root = make_root(tmp_path, kind, *names)
    assert [grey(root, name) for name in names] == [0, 1, 2, 3, 4]


@kinds
def test_several_spellings_and_none_of_them_is_an_error_that_shows_the_difference(
    tmp_path: Path, kind: str
) -> None:
    root = make_root(tmp_path, kind, "a.PNG", "A.png", NFC, NFD)
    told = "2 have it in other capitals or another Unicode form: 'A.png' and 'a.PNG'"
    with pytest.raises(ImageError, match=f"image `a.png` in .*{told}"):
        ImageStore(root).open("a.png")
    with pytest.raises(ImageError, match=re.escape(f"{NFD!a} and {NFC!a}")):
        ImageStore(root).open(NFC.upper())


@kinds
def test_letters_decide_between_capitals(tmp_path: Path, kind: str) -> None:
    root = make_root(tmp_path, kind, NFD, NFD.upper())
    assert grey(root, NFC) == 0
    assert grey(root, NFC.upper()) == 1


def write_mac_zip(path: Path, name: str) -> Path:
    """As the Finder writes it: the bytes of a name are UTF-8, and no flag says so."""
    plain = "x" * len(name.encode())
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write_image(path.with_name("image.png"), 7), plain)
    path.write_bytes(path.read_bytes().replace(plain.encode(), name.encode()))
    return path


@pytest.mark.parametrize("name", [NFC, NFD, "写真/ё.png"])
def test_an_archive_of_a_mac_is_read(tmp_path: Path, name: str) -> None:
    path = write_mac_zip(tmp_path / "mac.zip", name)
    root = ImageRoot(path)
    assert grey(root, name) == grey(root, unicodedata.normalize("NFC", name)) == 7
    with zipfile.ZipFile(path) as archive:  # rows may be made of what `zipfile` says
        assert archive.namelist() != [name]
        assert grey(root, archive.namelist()[0]) == 7
    assert Archive(path).example == name


def test_an_archive_in_code_page_437_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(write_image(tmp_path / "image.png", 7), "caf@.png")
    data = (tmp_path / "x.zip").read_bytes().replace(b"caf@", "café".encode("cp437"))
    (tmp_path / "x.zip").write_bytes(data)
    assert grey(ImageRoot(tmp_path / "x.zip"), "café.png") == 7


def test_an_archive_of_a_repository_may_have_other_capitals(tmp_path: Path) -> None:
    make_root(tmp_path, "zip", "A-OKVQA/1.png")
    (tmp_path / "repository" / "images_zip").mkdir(parents=True)
    (tmp_path / "root.zip").rename(tmp_path / "repository" / "images_zip" / "a-okvqa.zip")
    assert grey(ImageRoot(tmp_path / "repository"), "images\\A-OKVQA\\1.png") == 0


def test_another_spelling_does_not_leave_the_root(tmp_path: Path) -> None:
    write_image(tmp_path / "Secret" / "a.png")
    write_image(tmp_path / "root" / "b.png")
    (tmp_path / "root" / "Link").symlink_to(tmp_path / "Secret")
    for path, cause in {
        "..\\secret\\a.png": "leaves the image root",
        "\\secret\\a.png": "leaves the image root",
        "link/a.png": "symbolic link leaves",
    }.items():
        with pytest.raises(ImageError, match=cause):
            ImageStore(ImageRoot(tmp_path / "root")).open(path)


def test_a_file_that_appears_later_is_found(tmp_path: Path) -> None:
    root = make_root(tmp_path, "folder", "a.png")
    assert "B.png" not in root
    write_image(tmp_path / "root" / "b.png", 9)
    assert grey(root, "B.png") == 9


def test_the_home_of_the_user_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_image(tmp_path / "images" / "a.png", 7)
    write_rows(tmp_path / "mine.jsonl", [train_row(row, "a.png") for row in range(20)])
    options = {"batch_size": 2, "num_workers": 0, "collate": collate}
    data = PairDataModule("~/mine.jsonl", image_root="~/images", **options)
    data.setup()
    assert next(iter(data.train_dataloader()))["query"]["grey"].tolist() == [7, 7]


@given(st.text(st.characters(exclude_characters="/\\.\0"), min_size=1, max_size=8))
def test_folding_forgets_capitals_and_normal_forms_alone(name: str) -> None:
    for form in ("NFC", "NFD"):
        assert folded(unicodedata.normalize(form, name)) == folded(name)
    assert folded(name.casefold()) == folded(name)
    assert folded(folded(name)) == folded(name)
    assert folded(name + "x") != folded(name)
