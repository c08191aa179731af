"""The Python in a card runs as it is, in a fresh process, and gives the encoder's vectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from export.tiny_encoders import build, build_open_clip
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning import Sample
from fanoise_lightning.export.usage import usage
from fanoise_lightning.export.write import write

pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.slow

NAMES = ("qwen2_vl", "qwen2_vl, as VLM2Vec", "qwen3_vl", "siglip", "align", "open_clip")

TEXT = "photo.jpg"  # a text that is the name of a file is still a text

# Runs each block as a file of its own would, and prints what it made.
RUN_ALL = """\
import json, runpy, sys
found = {}
for name in sys.argv[1:]:
    variables = runpy.run_path(name)
    kinds = ("texts", "pictures", "both")
    found[name] = {kind: variables[kind].tolist() for kind in kinds if kind in variables}
print(json.dumps(found))
"""


def expected(encoder: Any, picture: Path) -> dict[str, Tensor]:
    """What the encoder itself gives."""
    rows = {
        "texts": Sample(TEXT),
        "pictures": Sample("", str(picture)),
        "both": Sample("what is in it?", str(picture)),
    }
    if not hasattr(
        encoder, "positions"
    ):  # the towers add the vectors of the text and the picture of the block
        rows["both"] = Sample(TEXT, str(picture))
    with torch.inference_mode():
        return {kind: F.normalize(encoder(**encoder.collate([row])), dim=1) for kind, row in rows.items()}


@pytest.fixture(scope="module")
def results(once: Callable[..., Any]) -> dict[str, Any]:
    """What each block makes, beside what the encoder gives; in one process, as imports take seconds."""
    return once("usage", run_all)


def run_all(root: Path) -> dict[str, Any]:
    pixels = torch.randint(256, (48, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(root / "photo.jpg", quality=95)
    wanted: dict[str, dict[str, Tensor]] = {}
    for number, name in enumerate(NAMES):
        base, out = root / f"base{number}", root / f"out{number}"
        out.mkdir()
        encoder = build_open_clip(base) if name == "open_clip" else build(base, name)
        check, facts = write(encoder, out, merge=True)
        for reader in check.written.readers:
            cannot = check.written.cannot[reader]
            rows = {kind: 0.0 for kind in ("text", "picture", "text and picture") if kind not in cannot}
            block = usage(reader, {**facts, "readers": {reader: {"rows": rows}}}, out.name)
            block = block.replace("Two dogs", TEXT)
            file = f"{name}: {reader}.py"
            (root / file).write_text(block)
            wanted[file] = expected(encoder.eval(), root / "photo.jpg")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *wanted],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {"found": json.loads(done.stdout.splitlines()[-1]), "wanted": wanted}


@pytest.mark.parametrize("name", NAMES)
def test_the_block_of_each_library_gives_the_vectors_of_the_encoder(
    results: dict[str, Any], name: str
) -> None:
    files = [file for file in results["wanted"] if file.startswith(f"{name}: ")]
    assert len(files) == (1 if name == "open_clip" else 2)
    for file in files:
        for kind, vectors in results["found"][file].items():
            difference = (torch.tensor(vectors) - results["wanted"][file][kind]).abs().max().item()
            assert difference <= 1e-5, (file, kind, difference)


def test_a_block_shows_what_the_library_can(results: dict[str, Any]) -> None:
    found = {file: set(vectors) for file, vectors in results["found"].items()}
    assert found["qwen2_vl: sentence-transformers.py"] == {"texts", "pictures", "both"}
    assert found["qwen2_vl: transformers.py"] == {"texts", "pictures", "both"}
    assert found["qwen2_vl, as VLM2Vec: sentence-transformers.py"] == {"texts"}
    assert found["siglip: sentence-transformers.py"] == {"texts", "pictures"}
    assert found["open_clip: open_clip.py"] == {"texts", "pictures", "both"}


def test_a_model_type_that_transformers_lacks_is_imported_first() -> None:
    reading = {"pooling": "last", "max_text_length": 9, "plain_positions": False, "imports": ["a.b"]}
    for reader in ("transformers", "sentence-transformers"):
        receipt = {"reading": reading, "readers": {reader: {"rows": {}}}}
        assert usage(reader, receipt, "m").startswith("import a.b  # pip install fanoise-lightning\n")


def test_a_name_that_is_no_name_stays_out_of_the_code() -> None:
    reading = {"siglip": False, "max_text_length": 8}
    receipt = {"reading": reading, "readers": {"transformers": {"rows": {}}}}
    for name in ('x"); evil(', "```\n<b>", "a b"):
        assert "path/to/the/folder" in usage("transformers", receipt, name)
        assert name not in usage("transformers", receipt, name)
    assert 'from_pretrained("me/my-model")' in usage("transformers", receipt, "me/my-model")


def test_open_clip_reads_from_the_hub_by_another_scheme() -> None:
    receipt = {"reading": {"max_text_length": 8}, "readers": {"open_clip": {"rows": {}}}}
    assert '"hf-hub:me/my-model"' in usage("open_clip", receipt, "me/my-model")
    assert '"local-dir:my-model"' in usage("open_clip", receipt, "my-model")
