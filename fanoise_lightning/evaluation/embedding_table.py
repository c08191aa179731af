"""The embeddings of numbered items (unique texts and images), gathered over a pass and over all ranks.

Queries and candidates name their items by number, so an item that is in many rows or in many subsets is
embedded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fanoise_lightning.evaluation.ties import score_dtype

__all__ = ["UNIT", "EmbeddingTable", "Embeddings"]

UNIT = 0.01  # how far from 1 the length of an embedding may be: 16 bits cost less

# Items are turned into float64 in parts of about this many numbers, whose memory is used again: to get fresh
# memory for each part takes longer than the product.
_NUMBERS_PER_PART = 2**20


class Embeddings:
    """The embeddings that an :class:`EmbeddingTable` gathered.

    Args:
        rows: (n, D) L2-normalised embeddings, float32, in any order.
        position: (N,) the row of each item, -1 if it never arrived.
    """

    # Not a tuple or dataclass: torchmetrics would clone the tensors in it.
    def __init__(self, rows: Tensor, position: Tensor) -> None:
        self.rows, self.position = rows, position

    def select(self, items: Tensor) -> Embeddings:
        """These items alone, renumbered from 0 in the order given.

        Args:
            items: (n,) their numbers here.
        """
        return Embeddings(self.rows, self.position[items.to(self.position.device)])

    def cosines(self, queries: Tensor, items: Tensor) -> Tensor:
        """The cosine of each query with each of the items.

        Args:
            queries: (Q,) items that arrived.
            items: (U,) items that arrived.

        Returns:
            (Q, U), rounded to float32, in float64 where the device has it.
        """
        dtype = score_dtype(self.rows.device)
        query = self.rows.index_select(0, self.position[queries]).to(dtype)
        cosines = query.new_empty(len(queries), len(items))
        size = max(1, _NUMBERS_PER_PART // self.rows.shape[1])
        for part, block in zip(self.position[items].split(size), cosines.split(size, dim=1)):
            block.copy_((query @ self.rows.index_select(0, part).to(dtype).T).float())
        return cosines


class EmbeddingTable(Metric):
    """Collects the embeddings of numbered items over a pass and over all ranks.

    Items may arrive shuffled, repeated (a distributed sampler pads) and sharded over ranks.

    Args:
        num_items: how many there are, N.
        owner: what they belong to, for messages.
        kwargs: passed on to :class:`torchmetrics.Metric`.

    Raises:
        ValueError: in ``compute``, if an item is not one of 0 to N - 1, or an embedding is neither of unit
            length nor zero.

    Example:
        >>> table = EmbeddingTable(num_items=3)
        >>> table.update(torch.tensor([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]]), index=torch.tensor([1, 2, 0]))
        >>> table.compute().cosines(queries=torch.tensor([0]), items=torch.tensor([1, 2])).float()
        tensor([[0.6000, 0.0000]])
    """

    is_differentiable = False
    full_state_update = False

    index: list[Tensor]
    embeddings: list[Tensor]

    def __init__(self, num_items: int, owner: str = "the table", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_items, self.owner = num_items, owner
        self.add_state("index", [], dist_reduce_fx="cat")
        self.add_state("embeddings", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, index: Tensor) -> None:
        """Add a batch of items.

        Args:
            embeddings: (n, D) L2-normalised embeddings, any floating dtype.
            index: (n,) the numbers of these items.

        Raises:
            ValueError: if the shapes do not fit, or the batches before had another D.
        """
        if embeddings.ndim != 2 or index.shape != embeddings.shape[:1]:
            raise ValueError(
                f"{self.owner}: `embeddings` must be (n, D) and `index` (n,), got "
                f"{tuple(embeddings.shape)} and {tuple(index.shape)}"
            )
        batches = zip(self.embeddings, self.index)
        width = next((len(numbers) // len(items) for numbers, items in batches if len(items)), None)
        if len(index) and width not in (None, embeddings.shape[1]):
            raise ValueError(
                f"{self.owner}: these embeddings have {embeddings.shape[1]} dimensions, those before had "
                f"{width}: do they come from one encoder?"
            )
        self.index.append(index.to(embeddings.device))
        self.embeddings.append(embeddings.detach().float().flatten())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        # A rank that received no item does not know D, and torchmetrics would send 1-D floats for it, unlike
        # the other ranks. Hence flat embeddings, and no empty lists.
        if not self.index:
            self.index.append(torch.empty(0, dtype=torch.long, device=self.device))
            self.embeddings.append(torch.empty(0, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> Embeddings:
        """The embeddings of all ranks."""
        # Kept in one piece from now on: the batches beside it would double the memory.
        self.index, self.embeddings = [dim_zero_cat(self.index)], [dim_zero_cat(self.embeddings)]
        (index,), (embeddings,) = self.index, self.embeddings
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.num_items:
            raise ValueError(
                f"{self.owner} has the items 0 to {self.num_items - 1}, got embeddings of the items "
                f"{int(index.min())} to {int(index.max())}: do they belong to this data set?"
            )
        position = torch.full((self.num_items,), -1, device=index.device)
        position[index] = torch.arange(len(index), device=index.device)
        rows = embeddings.view(len(index), -1) if len(index) else embeddings[None]
        self._check_lengths(rows, index)
        return Embeddings(rows, position)

    def _check_lengths(self, rows: Tensor, index: Tensor) -> None:
        """Zero passes, and ties with everything; what is not finite is refused later, with its query."""
        lengths = torch.linalg.vector_norm(rows, dim=1)
        wrong = ((lengths - 1).abs() > UNIT) & (lengths > 0) & lengths.isfinite()
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise ValueError(
                f"{self.owner}: {int(wrong.sum())} embeddings are not of unit length (that of item "
                f"{int(index[first])} has {float(lengths[first]):.4g}): normalise them first, as with "
                "`torch.nn.functional.normalize`"
            )
