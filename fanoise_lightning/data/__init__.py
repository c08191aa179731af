"""Rows -> samples -> batches: MMEB's layout, and the user's own pairs."""

from __future__ import annotations

from fanoise_lightning.data.mmeb import MMEBDataModule
from fanoise_lightning.data.pairs import PairDataModule

__all__ = ["MMEBDataModule", "PairDataModule"]
