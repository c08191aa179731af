"""The public names of the package, and the modules that they are in."""

from __future__ import annotations

__all__ = ["HOME"]

# Resolved on first use: importing the callback must not pay for encoders, data or figures.
HOME = {
    "AtomicCheckpointIO": "training.checkpoints",
    "CachedFeatures": "encoders",
    "ContrastiveModule": "module",
    "EmbeddingFolder": "search.folder",
    "EmbeddingWriter": "callbacks",
    "Encoder": "encoders",
    "ExactResume": "callbacks",
    "FANoise": "callbacks",
    "FeatureTap": "losses",
    "InfoNCE": "losses",
    "LinearAlpha": "callbacks",
    "LinearWarmup": "training.schedules",
    "MMEBDataModule": "data",
    "MatryoshkaLoss": "losses",
    "MtebEncoder": "export.mteb_encoder",
    "OnnxTowers": "encoders",
    "OpenClipEncoder": "encoders",
    "PackagedTowers": "encoders",
    "Pair": "sample",
    "PairDataModule": "data",
    "PrecisionAtOne": "evaluation",
    "Sample": "sample",
    "RepeatAlpha": "callbacks",
    "ScoreboardWriter": "callbacks",
    "SearchIndex": "search.index",
    "SigmoidLoss": "losses",
    "SpectrumMonitor": "callbacks",
    "TwoTowerEncoder": "encoders",
    "VisionLanguageEncoder": "encoders",
    "effective_rank": "spectrum",
    "embed": "search.embed",
    "export_encoder": "export.export_encoder",
    "feature_noise": "noise",
    "mmeb_benchmark": "export.mteb_tasks",
    "singular_values": "spectrum",
    "spectral_rotation": "export.rotation",
}
