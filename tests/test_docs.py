"""The documentation is true: its Python runs, its reference is complete, its errors are those of the code."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import fanoise_lightning
import fanoise_lightning.callbacks
from fanoise_lightning import ContrastiveModule, InfoNCE, OpenClipEncoder, PairDataModule
from fanoise_lightning._names import HOME

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "benchmarks" / "README.md"])
FENCED = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
BLOCKS = {
    page: [code for name, code in FENCED.findall(page.read_text()) if name == "python"] for page in PAGES
}
# What a block is run with instead: no download, one device, a few steps.
INSTEAD = (
    (r'"ViT-B-32", pretrained="\w+"', '"emoji-resnet"'),
    (r'devices=8, strategy="\w+"', 'accelerator="cpu"'),
    (r'OnnxTowers\("my-model"\)', "encoder"),
    ("max_steps=2000", "max_steps=2"),
    ("max_epochs=5", "max_epochs=1"),
    ("batch_size=128", "batch_size=16, num_workers=0"),
)


class Theirs(LightningModule):
    """A reader's module."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.criterion = nn.Linear(4, 4), InfoNCE()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        x = F.normalize(self.tower(batch), dim=1)
        return self.criterion(x, x.roll(1, 0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def of_the_reader() -> dict[str, Any]:
    """What pages other than tutorials take for granted."""
    torch.manual_seed(0)
    Path("images").mkdir()
    empty = {"qry_image_path": "", "pos_image_path": ""}
    rows = [{"qry": f"query {i}", "pos_text": f"target {i}", **empty} for i in range(40)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("photos").mkdir()
    for i in range(40):
        Image.new("RGB", (8, 8), (6 * i, 0, 0)).save(f"photos/{i}.png")
    Path("products.csv").write_text(
        "caption,photo\n" + "".join(f"mug number {i},{i}.png\n" for i in range(40))
    )
    encoder, self = OpenClipEncoder("emoji-resnet"), Theirs()
    query, target = F.normalize(torch.randn(2, 8, 4), dim=2)
    return {
        "YourModule": Theirs,
        "your_data": DataLoader(torch.randn(16, 4), batch_size=8),
        "encoder": encoder,
        "module": ContrastiveModule(encoder),
        "data": PairDataModule("pairs.jsonl", batch_size=8, num_workers=0),
        "self": self,
        "query": query,
        "target": target,
        "features": query,
        "image": Image.new("RGB", (8, 8)),
    }


TUTORIALS = DOCS / "tutorials"  # can be followed from top to bottom


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run in order in one namespace, each of them whole."""
    monkeypatch.chdir(tmp_path)
    if "import mteb" in "".join(BLOCKS[page]):
        pytest.importorskip("mteb")
    namespace: dict[str, object] = {"__name__": page.stem}
    if page.parent != TUTORIALS:
        namespace |= of_the_reader()
    for code in BLOCKS[page]:
        for ours, instead in INSTEAD:
            code = re.sub(ours, instead, code)
        exec(compile(code, str(page), "exec"), namespace)


def test_what_stands_in_for_downloads_and_devices_is_in_use() -> None:
    code = "".join(code for blocks in BLOCKS.values() for code in blocks)
    assert [ours for ours, _ in INSTEAD if not re.search(ours, code)] == []


def test_every_block_names_a_language_that_is_tested() -> None:
    """Python under another name (`py`, `pycon`) would not run; commands and configs have their own tests."""
    for page in PAGES:
        names = {name for name, _ in FENCED.findall(page.read_text()) if not name.startswith("{")}
        assert names <= {"", "bash", "python", "yaml"}, page.name


def test_a_public_name_is_on_a_reference_page_and_in_the_table_of_these_pages() -> None:
    directive = re.compile(r"auto(?:class|function):: fanoise_lightning\.(?:callbacks\.)?(\w+)\n")
    pages = {page.name: page.read_text() for page in (DOCS / "reference").glob("*.md")}
    shown = {name: set(directive.findall(text)) for name, text in pages.items()}
    rows = re.findall(
        r"^\| \[.*\]\(reference/(\S+)\) \| (.*) \|$", (DOCS / "api.md").read_text(), re.MULTILINE
    )
    assert {page: set(re.findall(r"`(\w+)`", names)) for page, names in rows} == shown
    public = {*HOME, *fanoise_lightning.__all__, *fanoise_lightning.callbacks.__all__} - {"__version__"}
    assert set().union(*shown.values()) == public


def test_the_changelog_has_the_new_place_of_names_that_moved() -> None:
    row = re.compile(r"^ *\| `(fanoise_lightning[\w.]+)` \| `fanoise_lightning\.(\w+)` \|$", re.MULTILINE)
    moved = row.findall((ROOT / "CHANGELOG.md").read_text())
    assert moved
    for old, new in moved:
        assert old.endswith(f".{new}")
        assert new in fanoise_lightning.__all__
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(old.rpartition(".")[0])


def test_pages_name_no_private_module() -> None:
    """Files move; what can be imported from the package and its callbacks stays."""
    public = {*fanoise_lightning.__all__, "callbacks"}
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md"]:
        named = set(re.findall(r"\bfanoise_lightning\.(\w+)", page.read_text()))
        assert named <= public, page.name


def messages() -> Iterator[str]:
    """The text literals of the package, with … for what is filled in."""
    for folder in ("fanoise_lightning", "callbacks"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    yield "".join(map(str, parts))


def test_each_error_of_the_errors_page_is_one_of_the_code() -> None:
    lines = re.findall(r"^\* (`+) ?(.+?) ?\1$", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert lines
    texts = set(messages())
    for _, quoted in lines:
        parts = quoted.split("…")
        pattern = re.compile(".*?".join(map(re.escape, parts)), re.DOTALL)
        assert any(pattern.search(text) for text in texts if max(parts, key=len) in text), quoted
