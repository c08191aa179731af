from __future__ import annotations

import multiprocessing
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_roots import write_picture, zip_folder
from PIL import Image

from fanoise_lightning.data import images
from fanoise_lightning.data.images import ImageRoot, PictureError


@pytest.fixture(params=["folder", "zip"])
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> ImageRoot:
    """One picture (grey 7), a truncated one and a text, in a folder or a zip of it."""
    folder = tmp_path / "images"
    good = write_picture(folder / "sub" / "good.png", 7)
    (folder / "cut.png").write_bytes(good.read_bytes()[:-30])
    (folder / "note.png").write_text("not a picture")
    return ImageRoot(folder if request.param == "folder" else zip_folder(folder))


def open_saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Image.Image:
    image.save(tmp_path / name, **options)
    return ImageRoot(tmp_path).open(name)


def test_opens_rgb(pictures: ImageRoot) -> None:
    image = pictures.open("sub/good.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 4), (7, 7, 7))
    assert pictures.open("./sub//good.png").getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("sub/none.png", "no such file"),
        ("cut.png", "OSError|SyntaxError"),
        ("note.png", "UnidentifiedImageError"),
        ("../images/sub/good.png", "leaves the image root"),
        ("/sub/good.png", "leaves the image root"),
        ("C:\\good.png", "leaves the image root"),
    ],
)
def test_what_cannot_be_read_is_one_error(pictures: ImageRoot, path: str, cause: str) -> None:
    with pytest.raises(PictureError, match=cause) as error:
        pictures.open(path)
    assert f"`{path}`" in str(error.value)


def test_symlinks_must_stay_inside(tmp_path: Path) -> None:
    write_picture(tmp_path / "secret.png")
    write_picture(tmp_path / "images" / "good.png")
    (tmp_path / "images" / "out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "images" / "in.png").symlink_to("good.png")
    root = ImageRoot(tmp_path / "images")
    assert root.open("in.png").size == (4, 4)
    with pytest.raises(PictureError, match="symbolic link leaves the image root"):
        root.open("out.png")


def test_bombs_are_refused_before_decoding(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)  # no pixels follow: decoding would fail
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(PictureError, match=r"12000x12000 is more than \d+ pixels"),
    ):
        ImageRoot(tmp_path).open("bomb.png")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_huge_files_are_refused_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write_picture(tmp_path / "images" / "big.png")
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    root = ImageRoot(tmp_path / "images" if kind == "folder" else zip_folder(tmp_path / "images"))
    with pytest.raises(PictureError, match="bytes are more than 10"):
        root.open("big.png")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert open_saved(tmp_path, image, "turned.png", exif=exif).size == (1, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image = image.convert(mode)
    opened = open_saved(tmp_path, image, "clear.png")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_half_transparency_is_mixed(tmp_path: Path) -> None:
    opened = open_saved(tmp_path, Image.new("RGBA", (1, 1), (0, 0, 0, 51)), "half.png")
    assert opened.getpixel((0, 0)) == (204, 204, 204)


@pytest.mark.parametrize(("mode", "colour"), [("L", 90), ("1", 1), ("P", 0), ("CMYK", (0, 0, 0, 0))])
def test_other_modes_become_rgb(tmp_path: Path, mode: str, colour: object) -> None:
    image = Image.new(mode, (1, 1), colour)  # type: ignore[arg-type]
    opened = open_saved(tmp_path, image, "other.tif")
    assert (opened.mode, opened.getpixel((0, 0))) == ("RGB", image.convert("RGB").getpixel((0, 0)))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    opened = open_saved(tmp_path, image, "deep.png")
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == pytest.approx([0, 127.5, 255], abs=1)


def test_a_missing_root_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_text("no archive")
    for name in ("none", "broken.zip"):
        with pytest.raises(FileNotFoundError, match="neither a folder nor a zip"):
            ImageRoot(tmp_path / name)


def test_a_root_survives_pickling_in_use(pictures: ImageRoot) -> None:
    pictures.open("sub/good.png")
    assert pickle.loads(pickle.dumps(pictures)).open("sub/good.png").size == (4, 4)


@pytest.mark.slow
def test_a_fork_leaves_the_file_position_of_its_parent_alone(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    (tmp_path / "images").mkdir()
    for name in "abcd":
        Image.fromarray(noise).save(tmp_path / "images" / f"{name}.png")
    root = ImageRoot(zip_folder(tmp_path / "images"))
    root.open("a.png")
    assert root._archive is not None
    assert root._archive.fp is not None
    file = root._archive.fp.fileno()
    before = os.lseek(file, 0, os.SEEK_CUR)
    child = multiprocessing.get_context("fork").Process(target=root.open, args=("d.png",))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert os.lseek(file, 0, os.SEEK_CUR) == before
