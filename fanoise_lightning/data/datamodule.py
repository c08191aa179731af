"""What the data modules share: loaders, the collate of the encoder, and the account of broken pictures."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from fanoise_lightning.data.datasets import EvalDataset, PairCollate, SideCollate, TrainDataset
from fanoise_lightning.data.images import ImageRoot
from fanoise_lightning.data.loader import ResumableLoader
from fanoise_lightning.data.mixing import BatchSubsets, MixingSampler, Sampling
from fanoise_lightning.data.records import EvalRows, TrainRows
from fanoise_lightning.data.skipped import SkipLog
from fanoise_lightning.sample import Collate

__all__ = ["ContrastiveDataModule"]


class ContrastiveDataModule(LightningDataModule):
    """Pairs to train on and subsets to evaluate on; the children say where the rows come from.

    A training batch is ``{"query": inputs, "target": inputs, "negatives": inputs (only if there are any)}``,
    an evaluation batch ``{"index": (n,), "inputs": inputs}``, where inputs are what `collate` returns.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        sampling: Sampling = "proportional",
        batch_subsets: BatchSubsets = "mixed",
        num_workers: int,
        seed: int,
        max_skipped: float,
        collate: Collate | None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 2),  # a batch of one has nothing to contrast with
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}")
        if not 0 <= max_skipped <= 1:
            raise ValueError(f"`max_skipped` is a share of the rows, between 0 and 1, got {max_skipped}")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.sampling, self.batch_subsets = sampling, batch_subsets
        self.num_workers, self.seed, self.max_skipped = num_workers, seed, max_skipped
        self.collate = collate
        self.train_set: TrainDataset | None = None
        self.eval_sets: list[EvalDataset] | None = None
        self._skips: dict[str, SkipLog] = {}
        self._pass: tuple[SkipLog, str] | None = None

    @abstractmethod
    def read_train(self) -> list[TrainRows]:
        """Read the training rows."""

    @abstractmethod
    def read_eval(self) -> list[EvalRows]:
        """Read the evaluation rows."""

    @abstractmethod
    def images(self) -> ImageRoot | None:
        """The root of the pictures, ``None`` if there is none."""

    def setup(self, stage: str | None = None) -> None:
        """Read the rows that `stage` needs, once."""
        if self.train_set is None and stage in (None, "fit"):
            rows = self.read_train()
            self._skips["train"] = SkipLog("training rows", sum(map(len, rows)), self.max_skipped)
            images = self._checked_images(any(subset.has_pictures for subset in rows))
            self.train_set = TrainDataset(rows, images, self._skips["train"].allowed)
        if self.eval_sets is None:
            subsets = self.read_eval()
            total = sum(len(rows.sides) for rows in subsets)
            self._skips["eval"] = SkipLog("evaluation sides", total, self.max_skipped)
            images = self._checked_images(any(rows.sides.has_picture.any() for rows in subsets))
            self.eval_sets = [EvalDataset(rows, images) for rows in subsets]

    def _checked_images(self, needed: bool) -> ImageRoot | None:
        images = self.images()
        if needed and images is None:
            raise FileNotFoundError(f"the rows of {self._source()} have pictures, but there is no image root")
        return images

    def _source(self) -> str:
        return type(self).__name__

    def train_dataloader(self) -> DataLoader:
        """Whole batches in the order of `MixingSampler`, this process's part of each."""
        if self.train_set is None:
            raise RuntimeError("call `setup('fit')` before `train_dataloader()`")
        trainer = self.trainer
        if trainer is not None and trainer.overfit_batches:  # type: ignore[attr-defined]
            raise ValueError(
                "`overfit_batches` makes Lightning replace the sampler that mixes the subsets; use "
                "`num_samples` or `limit_train_batches` instead"
            )
        subsets = self.train_set.subsets
        sampler = MixingSampler(
            self.train_set,
            [len(rows) for rows in subsets],
            [rows.name for rows in subsets],
            sampling=self.sampling,
            batch_subsets=self.batch_subsets,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank if trainer is not None else 0,
            world_size=trainer.world_size if trainer is not None else 1,
        )
        return ResumableLoader(
            self.train_set,
            sampler=sampler,
            batch_size=None,
            collate_fn=PairCollate(self._collate()),  # type: ignore[arg-type]
            persistent_workers=self.num_workers > 0,
            **self._loading(),
        )

    def val_dataloader(self) -> list[DataLoader]:
        """One loader per evaluation subset, over an `EvalDataset`."""
        if self.eval_sets is None:
            raise RuntimeError("call `setup()` before asking for the evaluation loaders")
        collate = SideCollate(self._collate())
        return [
            DataLoader(sides, batch_size=self.eval_batch_size, collate_fn=collate, **self._loading())
            for sides in self.eval_sets
        ]

    def test_dataloader(self) -> list[DataLoader]:
        """The same as `val_dataloader`."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[DataLoader]:
        """The same as `val_dataloader`."""
        return self.val_dataloader()

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "pin_memory": self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator),
            # seeds of workers come from here: drawn from the global generator, they would shift dropout
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def _collate(self) -> Collate:
        module = self.trainer.lightning_module if self.trainer is not None else None
        collate = self.collate or getattr(module, "collate", None)
        if collate is None:
            raise ValueError(
                f"`{type(self).__name__}` does not know how to turn samples into tensors: train a module "
                "with a `collate` attribute, such as ContrastiveModule, or pass "
                f"`{type(self).__name__}(collate=...)`"
            )
        return collate

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Take the account of skipped pictures out of a batch before it goes to the device."""
        if isinstance(batch, dict) and "skipped" in batch:
            assert self.trainer is not None
            log = self._skips["train" if self.trainer.training else "eval"]
            # every process counts what it read itself: a report of rank 0 alone would hide the others' losses
            rank = f", rank {self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
            now = (log, f"epoch {self.trainer.current_epoch}, {self.trainer.state.stage}{rank}")
            if self._pass != now:
                self._report()
                self._pass = now
            log.add(batch.pop("skipped"))
        return batch

    def teardown(self, stage: str) -> None:
        """Report what the last pass skipped."""
        self._report()

    def _report(self) -> None:
        # a data module hears of no epoch's end: the next pass's first batch, or teardown, is the next best
        if self._pass is not None:
            log, when = self._pass
            log.report(when)
            self._pass = None
