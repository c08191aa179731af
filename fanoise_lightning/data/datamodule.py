"""What the data modules share: data sets, loaders, and the order's seed."""

from __future__ import annotations

import gc
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from fanoise_lightning._checks import check_at_least
from fanoise_lightning.data.batches.evaluation import EvalDataset, EvalSuite, ItemCollate
from fanoise_lightning.data.batches.loader import ResumableLoader
from fanoise_lightning.data.batches.mixing import BatchSubsets, MixingSampler, Sampling
from fanoise_lightning.data.batches.refusals import SkipRefused
from fanoise_lightning.data.batches.skipped import SkipReports
from fanoise_lightning.data.batches.small_tensors import send_small_tensors
from fanoise_lightning.data.batches.training import PairCollate, TrainDataset
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.records import EvalRows, TrainRows
from fanoise_lightning.data.streaming.loader import StreamDataset, StreamLoader, StreamSampler
from fanoise_lightning.data.streaming.reader import TrainStream
from fanoise_lightning.sample import Collate
from fanoise_lightning.seeds import run_seed
from fanoise_lightning.training.checkpoints import read_arguments

__all__ = ["DEFAULT_SEED", "ContrastiveDataModule", "MaskSameTarget"]

DEFAULT_SEED = 42  # of runs without a seed, and of what is the same in all runs: splits and samples

MaskSameTarget = Literal["classification", "all", "none"]
"""In which subsets pairs of a batch with the same target are not each other's negatives."""


class ContrastiveDataModule(LightningDataModule):
    """Pairs to train on and subsets to evaluate on; subclasses define where the rows come from.

    A training batch has ``"query"``, ``"target"`` and, if there are any, ``"negatives"``, each as `collate`
    returns it, and the numbers of `PairCollate`. An evaluation batch is ``{"index": (n,), "inputs": ...}``,
    with what `collate` returns for n items.
    """

    blind = False

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        sampling: Sampling = "proportional",
        batch_subsets: BatchSubsets = "mixed",
        shuffle_block: int = 1000,
        mask_same_target: MaskSameTarget = "none",
        num_workers: int,
        seed: int | None,
        max_skipped: float,
        decode_size: int | None = None,
        collate: Collate | None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 2),  # a batch of one has nothing to contrast with
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("shuffle_block", shuffle_block, 1),
            ("decode_size", decode_size, 1),
            ("seed", seed, 0),
        ):
            if value is not None:
                check_at_least(name, value, least)
        if not 0 <= max_skipped <= 1:
            raise ValueError(f"`max_skipped` is a share of the rows, between 0 and 1, got {max_skipped}")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.shuffle_block, self.mask_same_target = shuffle_block, mask_same_target
        self.sampling, self.batch_subsets = sampling, batch_subsets
        self.num_workers, self.seed, self.max_skipped = num_workers, seed, max_skipped
        self.decode_size, self.collate = decode_size, collate
        self.train_set: TrainDataset | StreamDataset | None = None
        self._streams: list[TrainStream] = []
        self._train_sizes: dict[str, int] = {}
        self.eval_sets: list[EvalDataset] | None = None
        self.eval_suite: EvalSuite | None = None
        self._skips = SkipReports(max_skipped)
        self._run_seed: int | None = None

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        weights_only: bool | None = None,
        *,
        allow: str | Sequence[str] | None = (),
        **kwargs: Any,
    ) -> ContrastiveDataModule:
        """Like Lightning's, but what the file names is built only if ``allow`` has it; see SECURITY.md."""
        arguments = read_arguments(cls, checkpoint_path, hparams_file, weights_only, kwargs, allow)
        safe = weights_only is not False
        return super().load_from_checkpoint(checkpoint_path, map_location, None, safe, **arguments)

    @property
    @abstractmethod
    def source_name(self) -> str:
        """Where the rows come from: a path, what messages call it, or ``hf://datasets/...``."""

    @abstractmethod
    def read_train(self) -> list[TrainRows] | list[TrainStream]:
        """Read the training rows, or open their streams."""

    @abstractmethod
    def read_eval(self) -> list[EvalRows]:
        """Read the evaluation rows."""

    @abstractmethod
    def images(self, part: Literal["train", "eval"]) -> ImageRoot | None:
        """The image root of the training or evaluation rows, ``None`` if there is none."""

    def setup(self, stage: str | None = None) -> None:
        """Read the rows that `stage` needs, once."""
        self._run_seed = None  # of an earlier run
        if self.train_set is None and stage in (None, "fit"):
            self.train_set = self._open_train_set()
        if self.eval_sets is None:
            subsets = self.read_eval()
            store = self._image_store("eval", subsets)
            self.eval_sets = [EvalDataset(rows, store) for rows in subsets]
            self.eval_suite = EvalSuite(self.eval_sets)
            # validation reads an item that several subsets share once, prediction once for each of them
            self._skips.start_log("eval", "evaluation items", self.eval_suite.sizes)
            sizes = {dataset.subset.name: len(dataset) for dataset in self.eval_sets}
            self._skips.start_log("predict", "evaluation items", sizes)

    def _open_train_set(self) -> TrainDataset | StreamDataset:
        subsets = self.read_train()
        self._train_sizes = {rows.name: len(rows) for rows in subsets}
        limit = self._skips.start_log("train", "training rows", self._train_sizes)
        self._streams = [stream for stream in subsets if isinstance(stream, TrainStream)]
        if self._streams:
            store = ImageStore(self.images("train"), (), self.decode_size, self._defers_images)
            return StreamDataset(self._streams, store, limit)
        tables = [rows for rows in subsets if isinstance(rows, TrainRows)]
        return TrainDataset(tables, self._image_store("train", tables), limit)

    def _image_store(
        self, part: Literal["train", "eval"], subsets: Sequence[TrainRows | EvalRows]
    ) -> ImageStore:
        """What opens the images of the subsets, prepared before workers start."""
        embedded = [rows.embedded for rows in subsets if rows.embedded is not None]
        store = ImageStore(self.images(part), embedded, self.decode_size, self._defers_images)
        for rows in subsets:
            store.prepare(rows.paths, rows.name)
        return store

    def train_dataloader(self) -> DataLoader:
        """This process's part of whole batches, in the order of `MixingSampler`."""
        if self.train_set is None:
            raise RuntimeError("call `setup('fit')` before `train_dataloader()`")
        trainer = self.trainer
        if trainer is not None and trainer.overfit_batches:  # type: ignore[attr-defined]
            raise ValueError(
                "`overfit_batches` makes Lightning replace the sampler that mixes the subsets; use "
                "`num_samples` or `limit_train_batches` instead"
            )
        options: dict[str, Any] = {
            "sampling": self.sampling,
            "batch_subsets": self.batch_subsets,
            "batch_size": self.batch_size,
            "seed": self.order_seed(),
            "rank": trainer.global_rank if trainer is not None else 0,
            "world_size": trainer.world_size if trainer is not None else 1,
        }
        loader: type[ResumableLoader]
        sampler: MixingSampler
        if isinstance(self.train_set, StreamDataset):
            options["shuffle_block"] = self.shuffle_block
            loader, sampler = StreamLoader, StreamSampler(self.train_set, self._streams, **options)
        else:
            subsets = self.train_set.subsets
            sizes, names = [len(rows) for rows in subsets], [rows.name for rows in subsets]
            loader, sampler = ResumableLoader, MixingSampler(self.train_set, sizes, names, **options)
        collate: Any = self._collate_pairs(self.train_set)
        return loader(
            self.train_set,
            sampler=sampler,
            batch_size=None,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            **self._loading(),
        )

    def _collate_pairs(self, dataset: TrainDataset | StreamDataset) -> SkipRefused:
        # chunks for GradCache are collated one by one
        module = self.trainer.lightning_module if self.trainer is not None else None
        chunk_size = getattr(module, "chunk_size", None)
        collate, mask = self._collate(), self.mask_same_target != "none"
        return SkipRefused(collate, PairCollate(collate, chunk_size, mask=mask, blind=self.blind), dataset)

    def order_seed(self) -> int:
        """The `seed`, or else that of the run: equal on all ranks, which call it together, and on resume."""
        if self.seed is not None:
            return self.seed
        if self._run_seed is None:
            seed = run_seed(DEFAULT_SEED)
            self._run_seed = seed if self.trainer is None else int(self.trainer.strategy.broadcast(seed))
        return self._run_seed

    def state_dict(self) -> dict[str, Any]:
        """The seed of the order, for a resumed run; and what was trained on, to read in a checkpoint."""
        return {"seed": self._run_seed, "trained_on": self._trained_on()}

    def _trained_on(self) -> dict[str, Any] | None:
        if self.train_set is None:
            return None
        return {
            "source": self.source_name,
            "subsets": self._train_sizes,
            "batch_size": self.batch_size,
            "processes": 1 if self.trainer is None else self.trainer.world_size,
            "sampling": self.sampling,
            "batch_subsets": self.batch_subsets,
            "mask_same_target": self.mask_same_target,
            "blind": self.blind,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the order of the saved run, if `seed` is ``None``."""
        self._run_seed = state_dict["seed"]

    def val_dataloader(self) -> DataLoader:
        """One loader over the items of all evaluation subsets, an `EvalSuite`."""
        if self.eval_suite is None:
            raise RuntimeError("call `setup()` before asking for the evaluation loaders")
        return self._eval_loader(self.eval_suite)

    def test_dataloader(self) -> DataLoader:
        """The loader of `val_dataloader`."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[DataLoader]:
        """One loader per evaluation subset, each over an `EvalDataset`."""
        if self.eval_sets is None:
            raise RuntimeError("call `setup()` before asking for the evaluation loaders")
        return [self._eval_loader(dataset) for dataset in self.eval_sets]

    def _eval_loader(self, dataset: EvalDataset | EvalSuite) -> DataLoader:
        collate = ItemCollate(self._collate(), dataset)
        return DataLoader(dataset, batch_size=self.eval_batch_size, collate_fn=collate, **self._loading())

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "pin_memory": self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator),
            # the seeds of workers: drawn from the global generator, they would shift dropout
            "generator": torch.Generator().manual_seed(self.order_seed()),
            "worker_init_fn": start_worker,
        }

    @property
    def _defers_images(self) -> bool:
        """Whether the encoder may not need an image: it then opens those that it needs."""
        return getattr(self._known_collate, "defers_images", False)

    @property
    def _known_collate(self) -> Collate | None:
        module = self.trainer.lightning_module if self.trainer is not None else None
        return self.collate or getattr(module, "collate", None)

    def _collate(self) -> Collate:
        collate = self._known_collate
        if collate is None:
            raise ValueError(
                f"`{type(self).__name__}` does not know how to turn samples into tensors: train a module "
                "with a `collate` attribute, such as ContrastiveModule, or pass "
                f"`{type(self).__name__}(collate=...)`"
            )
        return collate

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count what was skipped, and take it out of a batch before it goes to the device."""
        if isinstance(batch, dict) and "skipped" in batch:
            trainer = self.trainer
            assert trainer is not None
            loader = "train" if trainer.training else "predict" if trainer.predicting else "eval"
            # every process reports what it read itself: rank 0 alone would hide what the others skipped
            rank = f", rank {trainer.global_rank}" if trainer.world_size > 1 else ""
            when = f"epoch {trainer.current_epoch}, {trainer.state.stage}{rank}"
            self._skips.add(loader, when, batch.pop("skipped"))
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move all but chunks; the module moves each when it embeds it."""
        chunked = {name: side for name, side in batch.items() if isinstance(side, list)}
        rest = {name: value for name, value in batch.items() if name not in chunked}
        return super().transfer_batch_to_device(rest, device, dataloader_idx) | chunked

    def teardown(self, stage: str) -> None:
        """Report what the last pass skipped: a data module has no hook for the end of an epoch."""
        self._skips.report()


def start_worker(worker: int) -> None:
    """Keep a worker sharing the memory that it was forked with, and let it send small tensors by value."""
    # its first full garbage collection would write to every inherited object, and thereby copy some 130 MB
    # of imported modules
    gc.freeze()
    send_small_tensors()
    if int(os.environ.get("PL_SEED_WORKERS", 0)):  # Lightning does this only if no other function is given
        pl_worker_init_function(worker)
