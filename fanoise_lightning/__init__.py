"""FANoise in PyTorch Lightning: robust contrastive training of multimodal embedding models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fanoise_lightning._version import __version__

if TYPE_CHECKING:
    from fanoise_lightning.checkpoints import AtomicCheckpointIO
    from fanoise_lightning.data import MMEBDataModule, PairDataModule
    from fanoise_lightning.encoders import (
        Encoder,
        OpenClipEncoder,
        TwoTowerEncoder,
        VisionLanguageEncoder,
    )
    from fanoise_lightning.losses import FeatureTap, InfoNCE, SigmoidLoss
    from fanoise_lightning.metrics import PrecisionAtOne
    from fanoise_lightning.module import ContrastiveModule
    from fanoise_lightning.noise import feature_noise
    from fanoise_lightning.sample import Pair, Sample
    from fanoise_lightning.schedules import LinearWarmup
    from fanoise_lightning.spectrum import effective_rank, singular_values

# Resolved on first use: importing the callback must not pay for encoders, data or figures.
_HOME = {
    "AtomicCheckpointIO": "checkpoints",
    "ContrastiveModule": "module",
    "Encoder": "encoders",
    "FeatureTap": "losses",
    "InfoNCE": "losses",
    "LinearWarmup": "schedules",
    "MMEBDataModule": "data",
    "OpenClipEncoder": "encoders",
    "Pair": "sample",
    "PairDataModule": "data",
    "PrecisionAtOne": "metrics",
    "Sample": "sample",
    "SigmoidLoss": "losses",
    "TwoTowerEncoder": "encoders",
    "VisionLanguageEncoder": "encoders",
    "effective_rank": "spectrum",
    "feature_noise": "noise",
    "singular_values": "spectrum",
}

__all__ = [
    "AtomicCheckpointIO",
    "ContrastiveModule",
    "Encoder",
    "FeatureTap",
    "InfoNCE",
    "LinearWarmup",
    "MMEBDataModule",
    "OpenClipEncoder",
    "Pair",
    "PairDataModule",
    "PrecisionAtOne",
    "Sample",
    "SigmoidLoss",
    "TwoTowerEncoder",
    "VisionLanguageEncoder",
    "__version__",
    "effective_rank",
    "feature_noise",
    "singular_values",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
