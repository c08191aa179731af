"""The documentation is true: its Python runs, its reference is complete, its errors are those of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fanoise_lightning
import fanoise_lightning.callbacks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("tutorials/*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS_NETWORK = re.compile(r'pretrained="|"hf://|"Qwen/')

# Pages that can be followed from top to bottom: they define every name that they use.
COMPLETE = ("drop_in.md", "own_pairs.md", "losses.md", "methods.md")


def imports(code: str) -> str:
    """The import statements of a block alone."""
    return "\n".join(
        ast.unparse(node) for node in ast.parse(code).body if isinstance(node, (ast.Import, ast.ImportFrom))
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run in order in one namespace; those about a name of the reader's run up to it."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    for code in BLOCK.findall(page.read_text()):
        code = imports(code) if NEEDS_NETWORK.search(code) else code
        try:
            exec(compile(code, str(page), "exec"), namespace)
        except NameError:
            if page.name in COMPLETE:
                raise


def test_a_public_name_is_on_the_reference_pages() -> None:
    reference = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"auto(?:class|function):: fanoise_lightning\.(?:callbacks\.)?(\w+)\n", reference))
    public = {*fanoise_lightning.__all__, *fanoise_lightning.callbacks.__all__} - {"__version__"}
    assert shown == public


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
