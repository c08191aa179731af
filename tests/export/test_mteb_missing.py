"""What there is to say without mteb."""

from __future__ import annotations

import sys

import pytest

from fanoise_lightning import MMEBDataModule
from fanoise_lightning.export.mteb_tasks import mmeb_benchmark


def test_without_mteb_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ImportError, match="MMEB in mteb needs mteb: `pip install mteb`"):
        mmeb_benchmark(MMEBDataModule("emoji"))
