"""Tiny pretrained models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_models
import tiny_two_towers


@pytest.fixture(scope="session")
def qwen(tmp_path_factory) -> str:
    return tiny_models.save_tiny(tmp_path_factory.mktemp("qwen2_vl"), "qwen2_vl")


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> str:
    return tiny_two_towers.save_tiny(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture
def own_clip(clip: str, tmp_path: Path) -> str:
    """A copy of the model that the test may change."""
    return str(shutil.copytree(clip, tmp_path / "own_clip"))
