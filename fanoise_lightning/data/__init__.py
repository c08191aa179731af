"""Rows -> references -> samples -> batches: data in MMEB's layout, and pairs of your own."""

from __future__ import annotations

from fanoise_lightning.data.mmeb import MMEBDataModule
from fanoise_lightning.data.pairs import PairDataModule

__all__ = ["MMEBDataModule", "PairDataModule"]
