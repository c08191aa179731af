from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import tiny_two_towers
import torch
from adapter_checks import embed, randomise

from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny checkpoint of a family, saved at its first use: do not change it."""
    folders: dict[str, str] = {}

    def folder(family: str) -> str:
        if family not in folders:
            models = tiny_two_towers if family in tiny_two_towers.BUILDERS else tiny_models
            folders[family] = models.save_tiny(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return folder


@pytest.fixture(scope="session")
def adapter_once(tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """The folder of a Qwen2-VL adapter, and the embeddings with it; for all tests: do not change it."""
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), lora={"r": 2})
    randomise(encoder)
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    encoder.network.save_pretrained(folder)
    return folder, embed(encoder)


@pytest.fixture
def saved_adapter(adapter_once, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A copy of that folder that the test may change, and the embeddings with it."""
    folder, embeddings = adapter_once
    return Path(shutil.copytree(folder, tmp_path / "adapter")), embeddings
