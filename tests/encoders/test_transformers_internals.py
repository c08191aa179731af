"""What transformers does not document is used in one file, and in the model that is built from its parts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fanoise_lightning"
ALLOWED = (PACKAGE / "encoders" / "_transformers.py", PACKAGE / "encoders" / "phi3_vision")

# besides `transformers` itself; transformers documents what these hold
PUBLIC = {"transformers", "transformers.utils"}


def imports(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of each import from transformers; the name is empty for a whole module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        yield from ((module, name) for module, name in found if module.partition(".")[0] == "transformers")


def internals(source: str) -> list[tuple[str, str]]:
    """The imports from transformers that are not of its public classes and functions."""
    return [
        (module, name)
        for module, name in imports(source)
        if module not in PUBLIC or name.startswith("_") or name == "dynamic_module_utils"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "from transformers import _hidden",
        "from transformers.models.clip.modeling_clip import CLIPMLP",
        "from transformers.core_model_loading import WeightRenaming",
        "import transformers.modeling_utils",
    ],
)
def test_the_scan_finds_internals(line: str) -> None:
    assert internals(f"def f():\n    {line}\n")


def test_the_scan_lets_public_names_pass() -> None:
    assert not internals("from transformers import AutoModel\nfrom transformers.utils import cached_file")


def test_internals_of_transformers_are_used_in_their_two_places_alone() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if not any(file.is_relative_to(at) for at in ALLOWED)]
    assert len(files) > 50
    assert {str(file): found for file in files if (found := internals(file.read_text()))} == {}
    assert any(internals(file.read_text()) for file in (PACKAGE / "encoders" / "phi3_vision").glob("*.py"))
