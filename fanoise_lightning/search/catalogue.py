"""The rows of a catalogue for Lightning's predict: each process reads those of its own shards."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Subset

from fanoise_lightning.data.batches.evaluation import ItemCollate
from fanoise_lightning.data.datamodule import start_worker
from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.items import Items
from fanoise_lightning.sample import Collate, Sample
from fanoise_lightning.search.shard_writer import Shards, SkippedRow

__all__ = ["Catalogue"]


class Catalogue(LightningDataModule):
    """The rows of this process's shards that are not there yet, shard by shard.

    Within a shard, rows with a picture come first, in their order, then texts from long to short, which saves
    padding.

    Args:
        items: the rows.
        shards: which rows belong together; their size is a multiple of `batch_size`.
        collate: the encoder's.
        batch_size: rows in a batch.
        num_workers: processes that read pictures and tokenise.
    """

    def __init__(
        self, items: Items, shards: Shards, collate: Collate, batch_size: int, num_workers: int
    ) -> None:
        super().__init__()
        self.shards, self.collate = shards, collate
        self.batch_size, self.num_workers = batch_size, num_workers
        self.rows = _Rows(items, getattr(collate, "defers_images", False))

    def predict_dataloader(self) -> DataLoader:
        """Batches of ``{"index": (n,), "inputs": ..., "skipped": ...}``."""
        trainer = self.trainer
        assert trainer is not None
        # by number, not by what is left: processes look at the folder at different times
        own = range(trainer.global_rank, len(self.shards), trainer.world_size)
        missing = [self.shards.rows_of(number) for number in own if not self.shards.finished(number)]
        left = [self._by_cost(rows) for rows in missing]
        rows = np.concatenate([np.empty(0, np.int64), *left])
        return DataLoader(
            Subset(self.rows, rows),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            collate_fn=ItemCollate(self.collate, self.rows),
            num_workers=self.num_workers if len(rows) else 0,
            worker_init_fn=start_worker,
            pin_memory=isinstance(trainer.accelerator, CUDAAccelerator),
        )

    def _by_cost(self, rows: range) -> NDArray[np.int64]:
        references = self.rows.items.references
        texts, images = (
            pc.binary_length(column.slice(rows.start, len(rows))).to_numpy()
            for column in (references.texts, references.images)
        )
        costs = np.where(images > 0, np.iinfo(np.int64).max, texts)
        return rows.start + np.argsort(-costs, kind="stable")


class _Rows(Dataset):
    """The rows by number: each a sample, or the reason why there is none."""

    def __init__(self, items: Items, deferred: bool) -> None:
        self.items = items
        embedded = () if items.embedded is None else (items.embedded,)
        self.store = ImageStore(items.root, embedded, deferred=deferred)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> tuple[int, Sample | str]:
        row = int(row)
        try:
            return row, self.store.sample(self.items.references[row])
        except ImageError as error:
            return row, self.skip(row, str(error))

    def skip(self, row: int, why: str) -> SkippedRow:
        """Why a row cannot be used."""
        return SkippedRow(row, why)
