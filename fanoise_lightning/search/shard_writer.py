"""Writes the embeddings of a prediction run in shards, each as soon as its rows are complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from fanoise_lightning.evaluation.embedding_table import UNIT
from fanoise_lightning.search.folder import read_notes, write_shard

__all__ = ["ShardWriter", "Shards", "SkippedRow"]


class SkippedRow(str):
    """Why a row has no embedding.

    Attributes:
        row: its number.
    """

    row: int

    def __new__(cls, row: int, reason: str) -> SkippedRow:
        self = super().__new__(cls, reason)
        self.row = row
        return self

    def __reduce__(self) -> tuple[type[SkippedRow], tuple[int, str]]:
        return SkippedRow, (self.row, str(self))


@dataclass(frozen=True)
class Shards:
    """How N rows are cut into shards. It depends on nothing but these numbers, and so do the batches.

    Args:
        folder: where they are.
        rows: the columns ``id``, ``text`` and ``image`` of all N rows.
        size: rows in a shard; the last may have fewer.
        key: what they were made with; a shard with another is not one of these.

    Example:
        >>> rows = pa.table({name: ["a", "b", "c"] for name in ("id", "text", "image")})
        >>> shards = Shards(Path("index"), rows, size=2, key="")
        >>> [shards.rows_of(number) for number in range(len(shards))]
        [range(0, 2), range(2, 3)]
    """

    folder: Path
    rows: pa.Table
    size: int
    key: str

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def rows_of(self, number: int) -> range:
        """The numbers of the rows of a shard."""
        return range(number * self.size, min((number + 1) * self.size, len(self.rows)))

    @staticmethod
    def name(number: int) -> str:
        """The name of its files."""
        return f"{number:05d}"

    def finished(self, number: int) -> dict[str, Any] | None:
        """Its number of rows and what was skipped; ``None`` if it has to be written."""
        try:
            notes = read_notes(self.folder, self.name(number))
        except ValueError:  # damaged
            return None
        return notes if notes is not None and notes.get("key") == self.key else None

    def write(self, number: int, index: Tensor, embeddings: Tensor, skipped: Sequence[SkippedRow]) -> None:
        """Write a shard.

        Args:
            number: of the shard.
            index: (n,) the ascending numbers of the rows that have an embedding.
            embeddings: (n, D).
            skipped: the others.
        """
        ids = self.rows["id"]
        listed = [{"id": ids[line.row].as_py(), "reason": str(line)} for line in skipped]
        rows = self.rows.take(pa.array(index.numpy()))
        write_shard(self.folder, self.name(number), embeddings, rows, {"key": self.key, "skipped": listed})


class ShardWriter(BasePredictionWriter):
    """Write embeddings shard by shard, each once all its rows have come by.

    A row whose embedding is zero is skipped: it has no direction.

    ``predict_step`` returns ``{"index": (n,), "embeddings": (n, D)}``, and a batch has ``"skipped"``. Rows
    come in ascending order, whole shards, and no batch is of two of them.

    Args:
        shards: where the rows belong.
        dtype: of the numbers in the files.

    Raises:
        ValueError: if an embedding has a number that is not finite, with the id of its row.
    """

    def __init__(self, shards: Shards, dtype: torch.dtype) -> None:
        super().__init__(write_interval="batch")
        self.shards, self.dtype = shards, dtype
        self._forget()

    def _forget(self) -> None:
        self._index: list[Tensor] = []
        self._embeddings: list[Tensor] = []
        self._skipped: list[SkippedRow] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        index, embeddings = (prediction[name].detach().cpu() for name in ("index", "embeddings"))
        self._refuse_what_is_not_finite(index, embeddings)
        first = min([*index.tolist(), *(line.row for line in batch["skipped"])])
        usable = torch.linalg.vector_norm(embeddings, dim=1, dtype=torch.float32) > 1 - UNIT
        self._index.append(index[usable])
        self._embeddings.append(embeddings[usable].to(self.dtype))
        self._skipped += batch["skipped"]
        self._skipped += [SkippedRow(row, "its embedding is zero") for row in index[~usable].tolist()]
        number = first // self.shards.size
        if sum(map(len, self._index)) + len(self._skipped) == len(self.shards.rows_of(number)):
            index, order = torch.cat(self._index).sort()  # the rows come by cost
            embeddings = torch.cat(self._embeddings)[order]
            self.shards.write(number, index, embeddings, sorted(self._skipped, key=lambda line: line.row))
            self._forget()

    def _refuse_what_is_not_finite(self, index: Tensor, embeddings: Tensor) -> None:
        broken = sorted(index[~embeddings.isfinite().all(1)].tolist())
        if broken:
            name = self.shards.rows["id"][broken[0]].as_py()
            raise ValueError(
                f"the embedding of row {broken[0]} (id {name!r}) is not finite, nor are {len(broken) - 1} "
                "more of its batch: check the model, or try another `precision`"
            )
