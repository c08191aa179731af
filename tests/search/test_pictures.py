"""Which pictures a page may hold: those under the root, by any spelling of their path."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fanoise_lightning.search.pictures import Pictures


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a picture, another picture beside it, and links to both places."""
    root = tmp_path / "root"
    root.mkdir()
    for file in (root / "in.png", tmp_path / "out.png"):
        Image.new("RGB", (8, 8), "red").save(file)
    (tmp_path / "link").symlink_to(root)
    (root / "leads_out.png").symlink_to(tmp_path / "out.png")
    return root


@pytest.mark.parametrize(
    "path", ["in.png", "{root}/in.png", "{root}/../link/in.png", "{root}/../root/in.png"]
)
def test_a_picture_under_the_root_is_shown(root: Path, path: str) -> None:
    pictures = Pictures(root)
    assert pictures.thumbnail(path.format(root=root)).startswith("data:image/webp;base64,")
    assert not pictures.missing


@pytest.mark.parametrize(
    "path",
    [
        "../out.png",
        "{root}/../out.png",
        "{root.parent}/out.png",
        "leads_out.png",
        "{root}/leads_out.png",
        "/etc/hostname",
        "C:\\\\out.png",
        "/\x00",
    ],
)
def test_one_outside_of_it_has_a_reason_instead(root: Path, path: str) -> None:
    path = path.format(root=root)
    pictures = Pictures(root)
    assert pictures.thumbnail(path) == ""
    assert pictures.missing[path]
