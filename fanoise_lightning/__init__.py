"""FANoise in PyTorch Lightning: robust contrastive training of multimodal embedding models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fanoise_lightning._names import HOME
from fanoise_lightning._version import __version__

if TYPE_CHECKING:
    from fanoise_lightning.callbacks import (
        EmbeddingWriter,
        ExactResume,
        FANoise,
        LinearAlpha,
        RepeatAlpha,
        ScoreboardWriter,
        SpectrumMonitor,
    )
    from fanoise_lightning.data import MMEBDataModule, PairDataModule
    from fanoise_lightning.encoders import (
        CachedFeatures,
        Encoder,
        OnnxTowers,
        OpenClipEncoder,
        PackagedTowers,
        TwoTowerEncoder,
        VisionLanguageEncoder,
    )
    from fanoise_lightning.evaluation.precision_at_one import PrecisionAtOne
    from fanoise_lightning.export.export_encoder import export_encoder
    from fanoise_lightning.export.mteb_encoder import MtebEncoder
    from fanoise_lightning.export.mteb_tasks import mmeb_benchmark
    from fanoise_lightning.export.rotation import spectral_rotation
    from fanoise_lightning.losses import FeatureTap, InfoNCE, MatryoshkaLoss, SigmoidLoss
    from fanoise_lightning.module import ContrastiveModule
    from fanoise_lightning.noise import feature_noise
    from fanoise_lightning.sample import Pair, Sample
    from fanoise_lightning.search.embed import embed
    from fanoise_lightning.search.folder import EmbeddingFolder
    from fanoise_lightning.search.index import SearchIndex
    from fanoise_lightning.spectrum import effective_rank, singular_values
    from fanoise_lightning.training.checkpoints import AtomicCheckpointIO
    from fanoise_lightning.training.schedules import LinearWarmup

__all__ = [
    "AtomicCheckpointIO",
    "CachedFeatures",
    "ContrastiveModule",
    "EmbeddingFolder",
    "EmbeddingWriter",
    "Encoder",
    "ExactResume",
    "FANoise",
    "FeatureTap",
    "InfoNCE",
    "LinearAlpha",
    "LinearWarmup",
    "MMEBDataModule",
    "MatryoshkaLoss",
    "MtebEncoder",
    "OnnxTowers",
    "OpenClipEncoder",
    "PackagedTowers",
    "Pair",
    "PairDataModule",
    "PrecisionAtOne",
    "RepeatAlpha",
    "Sample",
    "ScoreboardWriter",
    "SearchIndex",
    "SigmoidLoss",
    "SpectrumMonitor",
    "TwoTowerEncoder",
    "VisionLanguageEncoder",
    "__version__",
    "effective_rank",
    "embed",
    "export_encoder",
    "feature_noise",
    "mmeb_benchmark",
    "singular_values",
    "spectral_rotation",
]


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
