from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from data_roots import Recorder, make_root, make_trainer
from lightning.pytorch import Trainer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    return lambda **options: make_trainer(tmp_path, **options)
