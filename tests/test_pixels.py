"""Which files are images, and what their values become: the same in training, evaluation and `embed`."""

from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from fanoise_lightning.data.images.decode import ImageError, decode
from fanoise_lightning.pixels import FORMATS, open_image, upright_rgb
from fanoise_lightning.sample import Sample

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep(values: np.ndarray, kind: str, **options: object) -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint16)), kind, **options)


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """Two values in three bytes, as scanners pack them; Pillow reads such files, but writes none."""
    height, width = values.shape
    first, second = (values.astype(int).reshape(-1, 2) >> 4).T
    packed = (
        np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    )
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(packed)}
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\3\0\1\0\0\0" + value.to_bytes(4, "little")
        for tag, value in tags.items()
    )
    directory = len(tags).to_bytes(2, "little") + entries + bytes(4)
    return b"II*\0" + (8 + len(packed)).to_bytes(4, "little") + packed + directory


def pgm(values: np.ndarray, largest: int) -> bytes:
    height, width = values.shape
    return f"P5\n{width} {height}\n{largest}\n".encode() + values.astype(">u2").tobytes()


SCALED = {
    "png": deep(RAMP, "png"),
    "jpeg2000": deep(RAMP, "jpeg2000", irreversible=False),
    "ppm": deep(RAMP, "ppm"),
    "pgm of 12 bits": pgm(RAMP >> 4, 4095),
    "tiff": deep(RAMP, "tiff"),
    "tiff, packed": deep(RAMP, "tiff", compression="tiff_lzw"),
    "tiff, most significant byte first": encoded(Image.fromarray(RAMP.astype(">u2")), "tiff"),
    "tiff that names its largest value": deep(RAMP >> 4, "tiff", tiffinfo={281: 4095}),
    "tiff of 12 bits": tiff_of_12_bits(RAMP),
    "tiff, white is zero": deep(65535 - RAMP, "tiff", tiffinfo={262: 0}),
}


@pytest.mark.parametrize("name", SCALED)
def test_a_known_range_is_scaled(name: str) -> None:
    trained = np.asarray(decode(SCALED[name], "x"))
    assert np.abs(trained - (RAMP / 65535 * 255)[..., None]).max() <= 1
    embedded = upright_rgb(Sample(image=open_image(io.BytesIO(SCALED[name]))).images[0])
    assert np.array_equal(np.asarray(embedded), trained)


UNKNOWN = {
    "float tiff": encoded(Image.fromarray((RAMP / 65535).astype(np.float32)), "tiff"),
    "32-bit tiff": encoded(Image.fromarray(RAMP.astype(np.int32)), "tiff"),
    "12 bits in a tiff of 16": deep(RAMP >> 4, "tiff"),
    "12 bits in a png of 16": deep(RAMP >> 4, "png"),
    "14 bits in a tiff of 16": deep(RAMP >> 2, "tiff"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_range_is_refused_by_name(name: str) -> None:
    with pytest.raises(ImageError, match=r"image `x`: an image of mode '[IF].*\(8x8\).*scale it to 0\.\.255"):
        decode(UNKNOWN[name], "`x`")
    with pytest.raises(ValueError, match=r"scale it to 0\.\.255"):
        upright_rgb(open_image(io.BytesIO(UNKNOWN[name])))


def test_colours_that_may_hold_12_bits_in_16_are_refused() -> None:
    def colours(bits: int) -> bytes:
        """A TIFF of 16-bit RGB, made of one of 8 bits: Pillow writes none."""
        values = np.repeat(RAMP[..., None] >> (16 - bits), 3, axis=2).astype("<u2")
        tags = {256: 8, 257: 8, 258: 16, 259: 1, 262: 2, 273: 8, 277: 3, 278: 8, 279: values.nbytes, 284: 1}
        bits_at = 8 + values.nbytes
        entries = b"".join(
            tag.to_bytes(2, "little")
            + b"\3\0"
            + (
                (3).to_bytes(4, "little") + bits_at.to_bytes(4, "little")
                if tag == 258
                else (1).to_bytes(4, "little") + value.to_bytes(4, "little")
            )
            for tag, value in tags.items()
        )
        directory = len(tags).to_bytes(2, "little") + entries + bytes(4)
        return b"II*\0" + (bits_at + 6).to_bytes(4, "little") + values.tobytes() + b"\x10\0" * 3 + directory

    assert np.abs(np.asarray(decode(colours(16), "x"))[..., 0] - RAMP / 65535 * 255).max() <= 1
    with pytest.raises(ImageError, match="quarter of its 16 bits"):
        decode(colours(12), "x")


def test_a_black_image_is_black() -> None:
    assert decode(deep(RAMP * 0, "png"), "x").getextrema() == ((0, 0),) * 3


def test_transparency_does_not_count_as_colour() -> None:
    image = Image.new("RGBA", (2, 1), (10, 10, 10, 255))
    assert decode(encoded(image, "png"), "x").getpixel((0, 0)) == (10, 10, 10)


@pytest.mark.parametrize("call", ["Image.open(", "exif_transpose(", 'convert("RGB")'])
def test_one_module_opens_and_turns_images(call: str) -> None:
    package = Path(__file__).parents[1] / "fanoise_lightning"
    users = {str(file.relative_to(package)) for file in package.rglob("*.py") if call in file.read_text()}
    # a processor of transformers, such as Phi-3.5-vision's, takes any image by itself
    processor = {"encoders/phi3_vision/hd_transform.py"}
    # what reads an exported folder does so as users of another library do
    readers = {user for user in users if user.startswith("export/readers/")} | {"export/usage.py"}
    assert users - processor - readers == {"pixels.py"}


@pytest.mark.parametrize("kind", ["bmp", "gif", "jpeg", "jpeg2000", "png", "ppm", "tiff", "webp", "avif"])
def test_formats_of_pixels_are_read_whatever_the_name(tmp_path: Path, kind: str) -> None:
    if kind.upper() not in Image.SAVE and not Image.init() and kind.upper() not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    assert kind.upper() in FORMATS
    (tmp_path / "x.dat").write_bytes(encoded(Image.new("RGB", (16, 16), (200, 200, 200)), kind))
    for image in (decode((tmp_path / "x.dat").read_bytes(), "x"), Sample(image=tmp_path / "x.dat").images[0]):
        assert image.size == (16, 16)
        assert abs(image.convert("RGB").getpixel((8, 8))[0] - 200) < 4


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(ls) system\nshowpage\n"


def test_no_program_is_started_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: started.append(args) or 1 / 0)
    (tmp_path / "x.png").write_bytes(EPS)
    with pytest.raises(ImageError, match=r"`x\.png`: it is not an image in one of the formats AVIF"):
        decode(EPS, "`x.png`")
    with pytest.raises((ValueError, UnidentifiedImageError), match=r"in one of .*JPEG"):
        Sample(image=tmp_path / "x.png")
    assert started == []


def test_only_decoders_of_the_list_see_a_file() -> None:
    Image.init()
    others = set(Image.OPEN) - set(FORMATS)
    assert others & {"EPS", "WMF", "HDF5", "PSD"}
    for kind in sorted(others & set(Image.SAVE)):
        file = io.BytesIO()
        try:
            Image.new("RGB", (8, 8)).save(file, kind)
            read = Image.open(io.BytesIO(file.getvalue())).format
        except Exception:
            continue  # of this mode Pillow writes none, or reads none
        if kind != "DIB" and read == kind:
            with pytest.raises(ImageError, match="in one of the formats"):
                decode(file.getvalue(), "x")


@pytest.mark.parametrize("kind", ["bmp", "gif", "jpeg2000", "ppm", "tiff", "webp"])
def test_a_file_that_ends_early_is_an_error(kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    with pytest.raises(ImageError, match="image `x`"):
        decode(encoded(Image.fromarray(values), kind)[:-1500], "`x`")


# The EXIF block

TURNED = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112], block[0x010F] = orientation, "a camera"
    return block.tobytes()


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_as_pillow_turns_it_once(kind: str, orientation: int) -> None:
    block = Image.Exif()
    block[0x0112] = orientation
    data = encoded(TURNED, kind, exif=block)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    turned = upright_rgb(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(turned), expected)
    assert np.array_equal(np.asarray(upright_rgb(turned)), expected)


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg", "avif"])
@pytest.mark.parametrize("block", [b"nonsense", b"II*\0\x08\0\0\0\xff\xff\x12\x01", b"MM", b""])
def test_an_image_whose_orientation_cannot_be_read_is_upright(kind: str, block: bytes) -> None:
    data = encoded(TURNED, kind, exif=exif(1))
    image = Image.open(io.BytesIO(data))
    image.info["exif"] = b"Exif\0\0" + block
    assert np.array_equal(np.asarray(upright_rgb(image)), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_file_with_a_damaged_block_is_read_everywhere(tmp_path: Path, kind: str) -> None:
    data = encoded(TURNED, kind, exif=b"Exif\0\0nonsense")
    (tmp_path / "image").write_bytes(data)
    assert decode(data, "x").size == Sample(image=tmp_path / "image").images[0].size == TURNED.size
    assert upright_rgb(Image.open(io.BytesIO(data))).size == TURNED.size  # as `embed` does


def test_a_damaged_tag_beside_the_orientation_does_not_keep_an_image_from_being_turned() -> None:
    block = bytearray(exif(6))
    block[block.index(b"\x01\x0f\x00\x02") + 1] = 0  # Make becomes a tag of numbers
    image = TURNED.copy()
    image.info["exif"] = bytes(block)
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(image)
    assert np.array_equal(np.asarray(upright_rgb(image)), np.rot90(np.asarray(TURNED), -1))


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_a_cut_file_with_an_orientation_is_an_error(kind: str) -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(ImageError):
        decode(encoded(large, kind, exif=exif(6))[:-2000], "x")


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused_by_its_size(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"an image of {size[0]}x{size[1]} has no pixels"):
        upright_rgb(Image.new("RGB", size))


def test_premultiplied_grey_is_read_as_premultiplied_colours() -> None:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 2), dtype=np.uint8), "LA")
    colours = grey.convert("RGBA").convert("RGBa")
    read = np.asarray(upright_rgb(grey.convert("La"))).astype(int)
    assert np.abs(read - np.asarray(upright_rgb(colours))).max() <= 1
