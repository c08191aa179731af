from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_roots import train_row, write_image, write_rows
from PIL import Image

from fanoise_lightning.data.batches.mixing import Batch
from fanoise_lightning.data.images.decode import ImageError, decode
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.pairs import PairDataModule
from fanoise_lightning.data.rows.embedded import EmbeddedImages, to_keys

GREY = Image.new("RGB", (4, 4), (7, 7, 7))


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photograph(width: int, height: int) -> Image.Image:
    """Coarse and fine structure, as in a photograph: noise at several scales."""
    random = np.random.default_rng(0)
    layers = []
    for cells in (4, 16, 64):
        noise = Image.fromarray(random.integers(0, 255, (cells, cells, 3), np.uint8))
        layers.append(np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32))
    return Image.fromarray((0.6 * layers[0] + 0.3 * layers[1] + 0.1 * layers[2]).astype(np.uint8))


def test_the_three_sources_give_the_same_image(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", 7)
    keys, part = to_keys(pa.array([path.read_bytes()], pa.binary()))
    images = ImageStore(ImageRoot(tmp_path), [EmbeddedImages([part])])
    for image in ("a.png", path.read_bytes(), keys[0].as_py()):
        opened = images.open(image)
        assert (opened.mode, opened.size, opened.getpixel((0, 0))) == ("RGB", (4, 4), (7, 7, 7))


def test_errors_name_the_image_and_its_root(tmp_path: Path) -> None:
    keys, part = to_keys(pa.array([b"no image"], pa.binary()))
    (tmp_path / "a.png").write_bytes(b"no image")
    images = ImageStore(ImageRoot(tmp_path), [EmbeddedImages([part])])
    key = keys[0].as_py()
    names = {"a.png": f"`a.png` in `{tmp_path}`", key: f"`{key}`", b"no image": "of 8 embedded bytes"}
    for image, name in names.items():
        messages = set()
        for _ in range(3):
            with pytest.raises(ImageError, match=f"^image {name}: it is not an image") as error:
                images.open(image)
            messages.add(str(error.value))
        assert len(messages) == 1  # skipped images are counted by their messages


def test_a_path_without_a_root_is_an_error() -> None:
    with pytest.raises(ImageError, match=r"image `a\.png`: there is no image root"):
        ImageStore().open("a.png")


def test_images_survive_pickling(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    keys, part = to_keys(pa.array([encoded(GREY)], pa.binary()))
    copy = pickle.loads(pickle.dumps(ImageStore(ImageRoot(tmp_path), [EmbeddedImages([part])], 2)))
    assert copy.open("a.png").size == copy.open(keys[0].as_py()).size == (4, 4)
    assert copy.decode_size == 2


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_truncated_image_is_an_error(kind: str) -> None:
    with pytest.raises(ImageError, match=r"OSError|SyntaxError"):
        decode(encoded(photograph(64, 64), kind)[:-300], "`cut`")


def test_bombs_are_refused_before_decoding() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)  # no pixels follow: decoding would fail
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageError, match=r"12000x12000 is more than \d+ pixels"),
    ):
        decode(data, "`bomb`", decode_size=10)


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanoise_lightning.data.images.decode.MAX_BYTES", 10)
    with pytest.raises(ImageError, match=r"image `x`: \d+ bytes are more than 10"):
        decode(encoded(GREY), "`x`")


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (2, 1), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(encoded(image, exif=exif), "turned").size == (1, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image = image.convert(mode)
    opened = decode(encoded(image), "clear")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_half_transparency_is_mixed() -> None:
    opened = decode(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 51))), "half")
    assert opened.getpixel((0, 0)) == (204, 204, 204)


@pytest.mark.parametrize(("mode", "colour"), [("L", 90), ("1", 1), ("P", 0), ("CMYK", (0, 0, 0, 0))])
def test_other_modes_become_rgb(mode: str, colour: object) -> None:
    image = Image.new(mode, (1, 1), colour)  # type: ignore[arg-type]
    opened = decode(encoded(image, "tiff"), "other")
    assert (opened.mode, opened.getpixel((0, 0))) == ("RGB", image.convert("RGB").getpixel((0, 0)))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    image = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    opened = decode(encoded(image), "deep")
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == pytest.approx([0, 127.5, 255], abs=1)


@pytest.mark.parametrize(
    ("size", "decode_size", "opened"),
    [
        ((512, 768), 256, (256, 384)),
        ((512, 768), 257, (512, 768)),
        ((511, 768), 256, (511, 768)),  # half of it would be 255.5
        ((513, 768), 256, (257, 384)),
        ((512, 768), 128, (128, 192)),
        ((512, 768), 1, (64, 96)),  # there is no smaller scale
        ((100, 80), 224, (100, 80)),  # never enlarged
        ((512, 768), None, (512, 768)),
    ],
)
def test_jpegs_open_at_the_smallest_scale_that_is_large_enough(
    size: tuple[int, int], decode_size: int | None, opened: tuple[int, int]
) -> None:
    for width, height in (size, size[::-1]):
        image = decode(encoded(photograph(width, height), "jpeg"), "`x`", decode_size)
        assert image.size == (opened if width == size[0] else opened[::-1])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("side", [512, 1024])
def test_a_reduced_jpeg_shows_the_same_at_the_size_of_the_model(mode: str, side: int) -> None:
    data = encoded(photograph(side, side).convert(mode), "jpeg", quality=95)
    full, reduced = (
        np.asarray(decode(data, "`x`", size).resize((224, 224), Image.Resampling.BICUBIC), np.float32)
        for size in (None, 224)
    )
    assert decode(data, "`x`", 224).width == {512: 256, 1024: 256}[side]
    assert np.abs(full - reduced).mean() < 1.0  # of 255


def test_a_reduced_jpeg_is_upright() -> None:
    image = photograph(600, 400)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    opened = decode(encoded(image, "jpeg", exif=exif), "`x`", 200)
    assert opened.size == (200, 300)
    expected = image.rotate(-90, expand=True).resize((200, 300))
    assert np.abs(np.asarray(opened, np.float32) - np.asarray(expected, np.float32)).mean() < 4


@pytest.mark.parametrize("kind", ["png", "webp", "gif"])
def test_other_formats_come_in_full(kind: str) -> None:
    data = encoded(photograph(64, 48), kind)
    assert decode(data, "`x`", 8).size == (64, 48)
    assert decode(data, "`x`", 8).tobytes() == decode(data, "`x`").tobytes()


@pytest.mark.parametrize("decode_size", [None, 10])
def test_a_data_module_opens_images_at_its_decode_size(tmp_path: Path, decode_size: int | None) -> None:
    rows = [train_row(row, "a.jpg", "a.jpg") for row in range(8)]
    (tmp_path / "a.jpg").write_bytes(encoded(photograph(40, 40), "jpeg"))
    data = PairDataModule(
        write_rows(tmp_path / "s.jsonl", rows), batch_size=2, val_fraction=0.5, decode_size=decode_size
    )
    data.setup()
    width = 10 if decode_size else 40
    assert data.train_set[Batch([(0, 0)])][0][0].query.image.width == width
    assert {data.eval_sets[0][item][1].image.width for item in range(len(data.eval_sets[0]))} == {width}


def test_a_decode_size_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`decode_size` must be at least 1, got 0"):
        PairDataModule(tmp_path / "s.jsonl", decode_size=0)
