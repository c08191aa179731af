"""What every encoder family shares: samples in, one embedding per sample out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fanoise_lightning.sample import Collate, Sample

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Turns samples (a text, an image, or both) into embeddings.

    A subclass sets two attributes and implements :meth:`forward`. Every constructor argument is kept as an
    attribute of the same name, so that a checkpoint can describe how to build the encoder again.

    An encoder that skips some of its modules for some batches, such as the image tower for a batch of texts,
    implements :meth:`parts` and :meth:`add_row` too. With sharded parameters (FSDP2) every rank must run the
    same modules.

    Attributes:
        collate: turns B samples into the keyword arguments of :meth:`forward`. It is picklable, holds no
            weights, and runs in the data loader's workers.
        embedding_dim: D.
    """

    collate: Collate
    embedding_dim: int

    def forward(self, **batch: Tensor) -> Tensor:
        """Embeddings (B, D), one row per sample, not normalised: the caller does that."""
        raise NotImplementedError

    def parts(self, batch: dict[str, Tensor]) -> tuple[bool, ...]:
        """Which optional parts of the network a collated batch runs; ``{}``, no batch, runs none.

        By default there are no such parts: every batch runs every module.
        """
        return ()

    def add_row(self, batch: dict[str, Tensor], parts: tuple[bool, ...]) -> dict[str, Tensor]:
        """A collated batch with one more row at its end, as small as possible.

        Args:
            batch: a collated batch of B samples; ``{}`` for none.
            parts: the optional parts that the new row must run; `batch` runs none of them.

        Returns:
            The arguments of :meth:`forward` for B + 1 samples, the first B unchanged.
        """
        if batch:
            raise NotImplementedError(f"{type(self).__name__} has `parts`, but no `add_row`")
        with torch.inference_mode(False):
            return self.collate([Sample("a")])
