"""Encoders: samples in, embeddings out."""

from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.encoders.cached_features import CachedFeatures
from fanoise_lightning.encoders.onnx_towers import OnnxTowers
from fanoise_lightning.encoders.open_clip_encoder import OpenClipEncoder
from fanoise_lightning.encoders.packaged_towers import PackagedTowers
from fanoise_lightning.encoders.two_tower import TwoTowerEncoder
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder

__all__ = [
    "CachedFeatures",
    "Encoder",
    "OnnxTowers",
    "OpenClipEncoder",
    "PackagedTowers",
    "TwoTowerEncoder",
    "VisionLanguageEncoder",
]
