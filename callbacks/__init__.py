"""Lightning callbacks: the noise, and those that monitor a run and write its results."""

from fanoise_lightning.callbacks.alpha import LinearAlpha, RepeatAlpha
from fanoise_lightning.callbacks.embedding_writer import EmbeddingWriter
from fanoise_lightning.callbacks.exact_resume import ExactResume
from fanoise_lightning.callbacks.fanoise import FANoise
from fanoise_lightning.callbacks.scoreboard_writer import ScoreboardWriter
from fanoise_lightning.callbacks.spectrum_monitor import SpectrumMonitor

__all__ = [
    "EmbeddingWriter",
    "ExactResume",
    "FANoise",
    "LinearAlpha",
    "RepeatAlpha",
    "ScoreboardWriter",
    "SpectrumMonitor",
]
