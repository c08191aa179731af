"""What every encoder family shares: samples in, one embedding a sample out."""

from __future__ import annotations

from torch import Tensor, nn

from fanoise_lightning.sample import Collate

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Turns samples (a text, a picture, or both) into embeddings.

    A family sets two attributes and writes :meth:`forward`. Every constructor argument is kept as an
    attribute of the same name, so that a checkpoint can say how to build the encoder again.

    Attributes:
        collate: turns B samples into the keyword arguments of :meth:`forward`. It is picklable, holds no
            weights, and runs in the data loader's workers.
        embedding_dim: D.
    """

    collate: Collate
    embedding_dim: int

    def forward(self, **batch: Tensor) -> Tensor:
        """Embeddings (B, D), one row a sample; whoever compares them normalises them."""
        raise NotImplementedError
