"""What the data modules share: loaders, the collate of the encoder, and the account of broken images."""

from __future__ import annotations

import gc
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator
from torch.utils.data import DataLoader

from fanoise_lightning.data.batches.evaluation import EvalDataset, EvalSuite, ItemCollate
from fanoise_lightning.data.batches.loader import ResumableLoader
from fanoise_lightning.data.batches.mixing import BatchSubsets, MixingSampler, Sampling
from fanoise_lightning.data.batches.refusals import SkipRefused
from fanoise_lightning.data.batches.skipped import SkipLog
from fanoise_lightning.data.batches.training import PairCollate, TrainDataset
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.records import EvalRows, TrainRows
from fanoise_lightning.data.streaming.loader import StreamDataset, StreamLoader, StreamSampler
from fanoise_lightning.data.streaming.reader import TrainStream
from fanoise_lightning.sample import Collate
from fanoise_lightning.seeds import run_seed
from fanoise_lightning.training.checkpoints import read_hyperparameters
from fanoise_lightning.training.trust import described_arguments

__all__ = ["DEFAULT_SEED", "ContrastiveDataModule", "MaskSameTarget"]

DEFAULT_SEED = 42  # of runs without one, and of what is the same in all runs: splits and samples

MaskSameTarget = Literal["classification", "all", "none"]
"""In which subsets the pairs of a batch that have the same target are not each other's negatives."""


class ContrastiveDataModule(LightningDataModule):
    """Pairs to train on and subsets to evaluate on; the children say where the rows come from.

    A training batch is ``{"query": inputs, "target": inputs, "negatives": inputs (only if there are any)}``,
    an evaluation batch ``{"index": (n,), "inputs": inputs}``, where inputs are what `collate` returns.
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
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, got {value}")
        if not 0 <= max_skipped <= 1:
            raise ValueError(f"`max_skipped` is a share of the rows, between 0 and 1, got {max_skipped}")
        if mask_same_target not in get_args(MaskSameTarget):
            raise ValueError(
                f"`mask_same_target` must be one of {', '.join(get_args(MaskSameTarget))}, "
                f"got {mask_same_target!r}"
            )
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.shuffle_block, self.mask_same_target = shuffle_block, mask_same_target
        self.sampling, self.batch_subsets = sampling, batch_subsets
        self.num_workers, self.seed, self.max_skipped = num_workers, seed, max_skipped
        self.decode_size, self.collate = decode_size, collate
        self.train_set: TrainDataset | StreamDataset | None = None
        self._streams: list[TrainStream] = []
        self.eval_sets: list[EvalDataset] | None = None
        self.eval_suite: EvalSuite | None = None
        self._skips: dict[str, SkipLog] = {}
        self._pass: tuple[SkipLog, str] | None = None
        self._run_seed: int | None = None

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        weights_only: bool | None = None,
        *,
        allow: Sequence[str] = (),
        **kwargs: Any,
    ) -> ContrastiveDataModule:
        """As Lightning's, but what the file names is built only if it is in ``allow``; see SECURITY.md."""
        key, safe = cls.CHECKPOINT_HYPER_PARAMS_KEY, weights_only is not False
        described = described_arguments(
            cls,
            read_hyperparameters(checkpoint_path, hparams_file, safe, key),
            given=kwargs,
            allow=allow,
            objects=not safe and hparams_file is None,
        )
        return super().load_from_checkpoint(checkpoint_path, map_location, None, safe, **described | kwargs)

    @abstractmethod
    def read_train(self) -> list[TrainRows] | list[TrainStream]:
        """Read the training rows, or open their streams."""

    @abstractmethod
    def read_eval(self) -> list[EvalRows]:
        """Read the evaluation rows."""

    @abstractmethod
    def images(self, part: Literal["train", "eval"]) -> ImageRoot | None:
        """The root of the images of training or evaluation rows, ``None`` if there is none."""

    def setup(self, stage: str | None = None) -> None:
        """Read the rows that `stage` needs, once."""
        self._run_seed = None  # of an earlier run
        if self.train_set is None and stage in (None, "fit"):
            rows = self.read_train()
            sizes = {subset.name: len(subset) for subset in rows}
            log = self._skips["train"] = SkipLog("training rows", sizes, self.max_skipped)
            self._streams = [stream for stream in rows if isinstance(stream, TrainStream)]
            if self._streams:
                images = ImageStore(self.images("train"), decode_size=self.decode_size)
                self.train_set = StreamDataset(self._streams, images, log.allowed, log.in_subsets)
            else:
                tables = [subset for subset in rows if isinstance(subset, TrainRows)]
                images = self._image_store("train", tables)
                self.train_set = TrainDataset(tables, images, log.allowed, log.in_subsets)
        if self.eval_sets is None:
            subsets = self.read_eval()
            images = self._image_store("eval", subsets)
            self.eval_sets = [EvalDataset(rows, images) for rows in subsets]
            self.eval_suite = EvalSuite(self.eval_sets)
            # items that several subsets share are read once in validation, but for each subset in prediction
            for name, sizes in (
                ("eval", self.eval_suite.sizes),
                ("predict", {items.subset.name: len(items) for items in self.eval_sets}),
            ):
                self._skips[name] = SkipLog("evaluation items", sizes, self.max_skipped)

    def _image_store(
        self, part: Literal["train", "eval"], rows: Sequence[TrainRows | EvalRows]
    ) -> ImageStore:
        """What opens the images of `rows`; the archives that they need are opened before workers start."""
        root = self.images(part)
        for subset in rows:
            if len(paths := subset.paths):
                if root is None:
                    raise FileNotFoundError(
                        f"the rows of {self._source()} have images (subset `{subset.name}`: `{paths[0]}`), "
                        "but there is no image root"
                    )
                root.prepare(paths, subset.name)
        embedded = [subset.embedded for subset in rows if subset.embedded is not None]
        return ImageStore(root, embedded, self.decode_size)

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
        # chunks for GradCache are collated one by one
        chunk_size = getattr(trainer.lightning_module if trainer is not None else None, "chunk_size", None)
        collate = self._collate()
        pairs = PairCollate(collate, chunk_size, mask=self.mask_same_target != "none", blind=self.blind)
        return loader(
            self.train_set,
            sampler=sampler,
            batch_size=None,
            collate_fn=SkipRefused(collate, pairs, self.train_set),  # type: ignore[arg-type]
            persistent_workers=self.num_workers > 0,
            **self._loading(),
        )

    def order_seed(self) -> int:
        """The `seed`, or else the run's: equal on all ranks, which must ask together, and after a resume."""
        if self.seed is not None:
            return self.seed
        if self._run_seed is None:
            seed = run_seed(DEFAULT_SEED)
            self._run_seed = seed if self.trainer is None else int(self.trainer.strategy.broadcast(seed))
        return self._run_seed

    def state_dict(self) -> dict[str, Any]:
        """The seed of the order, for a resumed run."""
        return {"seed": self._run_seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the order of the run that was saved, if `seed` is ``None``."""
        self._run_seed = state_dict["seed"]

    def val_dataloader(self) -> DataLoader:
        """One loader over the `EvalSuite` of all evaluation subsets."""
        if self.eval_suite is None:
            raise RuntimeError("call `setup()` before asking for the evaluation loaders")
        return self._eval_loader(self.eval_suite)

    def test_dataloader(self) -> DataLoader:
        """The same as `val_dataloader`."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[DataLoader]:
        """One loader per evaluation subset, over an `EvalDataset`."""
        if self.eval_sets is None:
            raise RuntimeError("call `setup()` before asking for the evaluation loaders")
        return [self._eval_loader(items) for items in self.eval_sets]

    def _eval_loader(self, items: EvalDataset | EvalSuite) -> DataLoader:
        collate = ItemCollate(self._collate(), items)
        return DataLoader(items, batch_size=self.eval_batch_size, collate_fn=collate, **self._loading())

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "pin_memory": self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator),
            # seeds of workers come from here: drawn from the global generator, they would shift dropout
            "generator": torch.Generator().manual_seed(self.order_seed()),
            "worker_init_fn": start_worker,
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
        """Take the account of skipped images out of a batch before it goes to the device."""
        if isinstance(batch, dict) and "skipped" in batch:
            assert self.trainer is not None
            stage = "train" if self.trainer.training else "predict" if self.trainer.predicting else "eval"
            log = self._skips[stage]
            # every process counts what it read itself: a report of rank 0 alone would hide the others' losses
            rank = f", rank {self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
            now = (log, f"epoch {self.trainer.current_epoch}, {self.trainer.state.stage}{rank}")
            if self._pass != now:
                self._report()
                self._pass = now
            log.add(batch.pop("skipped"))
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Chunks stay where they are: the module moves each to the device when it embeds it."""
        chunked = {name: side for name, side in batch.items() if isinstance(side, list)}
        rest = {name: value for name, value in batch.items() if name not in chunked}
        return super().transfer_batch_to_device(rest, device, dataloader_idx) | chunked

    def teardown(self, stage: str) -> None:
        """Report what the last pass skipped."""
        self._report()

    def _report(self) -> None:
        # a data module hears of no epoch's end: the next pass's first batch, or teardown, is the next best
        if self._pass is not None:
            log, when = self._pass
            log.report(when)
            self._pass = None


def start_worker(worker: int) -> None:
    """Let a worker go on sharing the memory that it was forked with.

    Its first full garbage collection would write into every object that it inherited, and so copy some 130 MB
    of imported modules.
    """
    gc.freeze()
    if int(os.environ.get("PL_SEED_WORKERS", 0)):  # Lightning does so only where no other function stands
        pl_worker_init_function(worker)
