"""The names of the package: lazy, complete, and one object each however they are imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fanoise_lightning
from fanoise_lightning._names import HOME

ROOT = Path(__file__).parents[1]

# What the callback's import adds to Lightning's own (torchmetrics may import transformers, for one).
ADDED = """\
import sys
import fanoise_lightning
from fanoise_lightning._names import HOME
assert not {"torch", "lightning"} & set(sys.modules)
import lightning.pytorch
before = set(sys.modules)
from fanoise_lightning import FANoise
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""

FILES = """\
import sys
from pathlib import Path
from fanoise_lightning import FANoise, cli
from fanoise_lightning.callbacks import FANoise as other
assert FANoise is other and FANoise is cli.FANoise
for name, module in list(sys.modules.items()):
    if "callbacks" in str(getattr(module, "__file__", "")):
        print(Path(module.__file__).resolve())
"""


def printed(code: str) -> list[str]:
    """The words that Python prints in the repository's root, where ``callbacks`` is importable by itself."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_the_callback_imports_no_model_or_data_library() -> None:
    added = printed(ADDED)
    assert "fanoise_lightning" in added
    assert not {"datasets", "huggingface_hub", "open_clip", "peft", "pyarrow", "transformers"} & set(added)


@pytest.mark.slow
def test_every_file_of_the_callbacks_is_one_module() -> None:
    files = [file for file in printed(FILES) if Path(file).parent == ROOT / "callbacks"]
    assert str(ROOT / "callbacks" / "fanoise.py") in files
    assert len(files) == len(set(files))


def test_every_public_name_is_that_of_its_module() -> None:
    for name, module in HOME.items():
        there = getattr(import_module(f"fanoise_lightning.{module}"), name)
        assert getattr(fanoise_lightning, name) is there


def test_type_checkers_see_the_names_that_are_resolved_lazily() -> None:
    tree = ast.parse(Path(fanoise_lightning.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]  # if TYPE_CHECKING
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(HOME)
    assert set(fanoise_lightning.__all__) == seen | {"__version__"}
