"""Lightning callbacks: the noise, and what watches over a run."""

from fanoise_lightning.callbacks.fanoise import FANoise

__all__ = ["FANoise"]
