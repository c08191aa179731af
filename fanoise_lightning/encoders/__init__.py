"""Encoders: samples in, embeddings out."""

from fanoise_lightning.encoders.base import Collate, Encoder
from fanoise_lightning.encoders.open_clip import OpenClipEncoder

__all__ = ["Collate", "Encoder", "OpenClipEncoder"]
