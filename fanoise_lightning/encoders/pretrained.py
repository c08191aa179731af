"""What encoders around pretrained, partly frozen networks share."""

from __future__ import annotations

from typing import Self

from fanoise_lightning._log import report
from fanoise_lightning.encoders.base import Encoder

__all__ = ["PretrainedEncoder"]


class PretrainedEncoder(Encoder):
    """An encoder that trains all of a pretrained network, some of its parts, or an adapter on it."""

    def train(self, mode: bool = True) -> Self:
        """Put what holds trainable weights in train mode; frozen parts stay in eval mode."""
        super().train(mode)
        if mode:
            for part in self.modules():
                weights = list(part.parameters())
                if weights and not any(weight.requires_grad for weight in weights):
                    part.eval()
        return self

    def report(self, model: str, note: str = "") -> None:
        """Print how many parameters are trained, followed by a note, on rank 0."""
        counts = [parameter.numel() for parameter in self.parameters() if parameter.requires_grad]
        total = sum(parameter.numel() for parameter in self.parameters())
        report(f"{model}: {sum(counts):,} of {total:,} parameters are trained{note}")
