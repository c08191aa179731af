from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for processes, in spawned processes as well


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> str:
    """The path of an open_clip config whose model runs in milliseconds."""
    path = tmp_path_factory.mktemp("open_clip") / "tiny-two-tower.json"
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory) -> Path:
    """A small folder with MMEB-train/ and MMEB-eval/ as on the hub; for all tests: do not change it."""
    from data.snapshots import make_snapshot

    return make_snapshot(tmp_path_factory.mktemp("snapshot"))
