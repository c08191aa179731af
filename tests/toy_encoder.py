"""An encoder of numbers: enough for the training module, and fast."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RowDropout(nn.Module):
    """Dropout that draws row by row, so that a batch gets the masks that its chunks would get."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape, dtype=x.dtype) >= self.p) / (1 - self.p) if self.training else x


class ToyEncoder(nn.Module):
    """Numbers in, embeddings out: enough of an encoder for the module, and fast."""

    embedding_dim = 24

    def __init__(self, dropout: nn.Module | None = None) -> None:
        super().__init__()
        dropout = nn.Identity() if dropout is None else dropout
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), dropout, nn.Linear(32, self.embedding_dim))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    @staticmethod
    def collate(samples: list[Tensor]) -> dict[str, Tensor]:
        return {"x": torch.stack(list(samples))}
