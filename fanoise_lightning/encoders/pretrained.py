"""What encoders around pretrained, partly frozen networks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import nn

from fanoise_lightning._log import report
from fanoise_lightning.encoders.base import Encoder

__all__ = ["PretrainedEncoder"]


class PretrainedEncoder(Encoder):
    """An encoder that trains all of a pretrained network, some of its parts, or an adapter on it.

    Attributes:
        loaded: the digest of each weight as it was loaded, by name; see :meth:`remember`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, str] = {}

    def remember(self, loaded: Mapping[nn.Parameter, str]) -> None:
        """Note which weights a new encoder like this would load again: checkpoints do without them.

        Args:
            loaded: the digests of the network's parameters, taken right after it was loaded. By now it
                can have an adapter, and with it other names.
        """
        named = self.named_parameters(remove_duplicate=False)
        self.loaded = {name: loaded[parameter] for name, parameter in named if parameter in loaded}

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
