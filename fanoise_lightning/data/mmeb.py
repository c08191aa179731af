"""MMEB, and everything in its layout: subsets to train and to evaluate on, under one root."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from fanoise_lightning.data.batches.mixing import BatchSubsets, Sampling
from fanoise_lightning.data.datamodule import DEFAULT_SEED, ContrastiveDataModule, MaskSameTarget
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.rows.records import EvalRows, TrainRows, read_eval, read_train
from fanoise_lightning.data.sources.layouts import Layout, Part, open_root
from fanoise_lightning.data.streaming.blocks import TrainStream
from fanoise_lightning.sample import Collate

__all__ = ["MMEBDataModule"]

OPENED_AT_ONCE = 8  # streams


class MMEBDataModule(ContrastiveDataModule):
    """Training pairs mixed over subsets, and one evaluation of all subsets.

    The root is one of three:

    - ``"hf://datasets/TIGER-Lab"``: MMEB on the hub. What the chosen subsets need of ``MMEB-train`` and
      ``MMEB-eval``, rows and archives of images, is downloaded into the hub's cache once.
    - a folder with ``MMEB-train/`` and ``MMEB-eval/``, each with the files of that repository, all or some,
      as ``fanoise data --root`` makes it. Archives are read where they are, or unpacked into ``images/``.
    - a folder with ``subsets.json`` (name, meta-task and distribution of the evaluation subsets; name and
      meta-task of training subsets with other names), ``train/<subset>.parquet`` and
      ``eval/<subset>.parquet`` (or ``.jsonl``, or a folder of parquet shards) with MMEB's columns, and the
      images in ``images/`` or ``images.zip``; ``"emoji"`` is such a folder.

    An image that cannot be read, or that the encoder refuses, is skipped, counted and reported: in training
    another row of its subset takes its place, in evaluation the item is left out.

    Args:
        root: where rows and images are.
        batch_size: training pairs per process and step.
        eval_batch_size: items per process and evaluation step.
        train_subsets: names of the subsets to train on; ``None`` for all.
        eval_subsets: names of the subsets to evaluate on; ``None`` for all.
        split: of MMEB's training rows: ``"original"``, or ``"diverse_instruction"`` with paraphrased
            instructions.
        streaming: read the training rows one after the other while they are needed, instead of all before the
            first step: for rows that do not fit into memory, or, on the hub, onto the disk.
        num_samples: take so many rows of each training subset; ``None`` for all.
        sample: which: the ``"first"``, or ``"random"`` ones, the same whenever `seed` is the same.
        sampling: share of the subsets in an epoch: ``"proportional"`` to their sizes, ``"uniform"``, a
            temperature T (``size ** (1 / T)``), or a weight for each (0 leaves it out).
        batch_subsets: batches ``"mixed"`` over subsets, of a ``"single"`` one, or interleaved of blocks of so
            many rows.
        shuffle_block: with `streaming`, how many rows of a subset are shuffled together.
        mask_same_target: in which subsets other right answers of the batch, such as the same target in
            another pair, are no negatives: ``"classification"``, where the targets are few, ``"all"`` or
            ``"none"``. Hard negatives that are right answers are left out in every subset, except with
            ``"none"``.
        blind: drop the query images in training and evaluation: what can be solved without looking.
        num_workers: processes that decode and tokenise, per loader.
        seed: of the order, and of a random sample; ``None`` for that of the run (``seed_everything``, else
            42), which leaves the sample the same in all runs.
        max_skipped: share of the training rows, or of the evaluation items, whose images may be unreadable
            before the run stops; the same of each subset, rounded up.
        decode_size: open JPEG files at the smallest scale (1, 1/2, 1/4, 1/8) whose shorter side still has so
            many pixels: several times as fast for large photographs. At least the size that the encoder
            resizes to; ``None`` opens them in full.
        collate: turns samples into tensors; by default that of the module that is trained.

    Raises:
        HubError: if a download fails again and again (in `prepare_data`).
        FileNotFoundError: if the folder, a file or a subset is missing (in `setup`).
        ValueError: for an unknown subset, wrong columns or rows, or an empty subset (in `setup`); for fewer
            rows than a global batch has (in `train_dataloader`).

    Example:
        >>> data = MMEBDataModule("hf://datasets/TIGER-Lab", batch_size=256, num_samples=50_000)
        >>> trainer.fit(module, datamodule=data)  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | Path = "emoji",
        batch_size: int = 128,
        eval_batch_size: int = 256,
        train_subsets: Sequence[str] | None = None,
        eval_subsets: Sequence[str] | None = None,
        split: str = "original",
        streaming: bool = False,
        num_samples: int | None = None,
        sample: Literal["first", "random"] = "first",
        sampling: Sampling = "proportional",
        batch_subsets: BatchSubsets = "mixed",
        shuffle_block: int = 1000,
        mask_same_target: MaskSameTarget = "classification",
        blind: bool = False,
        num_workers: int = 2,
        seed: int | None = None,
        max_skipped: float = 0.01,
        decode_size: int | None = None,
        collate: Collate | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            sampling=sampling,
            batch_subsets=batch_subsets,
            shuffle_block=shuffle_block,
            mask_same_target=mask_same_target,
            num_workers=num_workers,
            seed=seed,
            max_skipped=max_skipped,
            decode_size=decode_size,
            collate=collate,
        )
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, got {num_samples}")
        if sample not in ("first", "random"):
            raise ValueError(f"`sample` must be first or random, got {sample!r}")
        if streaming and sample == "random":
            raise ValueError(
                "`sample='random'` takes rows from all over the files, which a stream reads from the start: "
                "use `streaming=False`, or `sample='first'`"
            )
        root = Path(root).expanduser() if str(root).startswith("~") else root
        self.root = Path(__file__).with_name("emoji") if root == "emoji" else root
        self.split = split
        self.train_subsets, self.eval_subsets = train_subsets, eval_subsets
        self.streaming, self.blind = streaming, blind
        self.num_samples, self.sample = num_samples, sample

    @cached_property
    def _layout(self) -> Layout:
        return open_root(self.root, self.split)

    def prepare_data(self) -> None:
        """Download what the run needs and what is not there yet; Lightning calls it once per node."""
        fit = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        self._layout.prepare(self.train_subsets, self.eval_subsets, fit=fit, rows=not self.streaming)

    def read_train(self) -> list[TrainRows] | list[TrainStream]:
        """Read the training rows of the chosen subsets, or open their streams."""
        names = self._layout.train_names(self.train_subsets)
        self._say_masks(names)
        if self.streaming:
            with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:  # on the hub mostly a wait for answers
                return list(pool.map(self._open_stream, names))
        return [self._read_rows(name) for name in names]

    def _masks(self, name: str) -> bool:
        if self.mask_same_target == "classification":
            return self._layout.meta_task(name) == "classification"
        return self.mask_same_target == "all"

    def _say_masks(self, names: list[str]) -> None:
        """Which mask is in force in each training subset."""
        masked, others = ([name for name in names if self._masks(name) == on] for on in (True, False))
        rest = "nothing" if self.mask_same_target == "none" else "hard negatives alone"
        where = [
            f"{what} in {', '.join(some)}"
            for what, some in (("pairs and hard negatives", masked), (rest, others))
            if some
        ]
        rank_zero_info(f"mask_same_target={self.mask_same_target} masks {'; '.join(where)}")
        unknown = [name for name in names if self._layout.meta_task(name) is None]
        if unknown and self.mask_same_target == "classification":
            entry = json.dumps({"name": unknown[0], "meta_task": "classification"})
            rank_zero_warn(
                f"`{self.root}`: subsets.json does not say what the training subsets {', '.join(unknown)} "
                f"are. If one is classification, add an entry such as {entry}: otherwise pairs with the same "
                "target are each other's negatives"
            )

    def _open_stream(self, name: str) -> TrainStream:
        rows, num_rows = self._layout.stream(name)
        masks, samples = self._masks(name), self.num_samples
        return TrainStream(name, rows, num_rows, masks, num_samples=samples, blind=self.blind)

    def _read_rows(self, name: str) -> TrainRows:
        limit = self.num_samples if self.sample == "first" else None
        files, masks = self._layout.files("train", name), self._masks(name)
        rows = read_train(files, name, limit=limit, blind=self.blind, mask_same_target=masks)
        if self.num_samples is None or len(rows) <= self.num_samples:
            return rows
        # the name in the seed: another choice of subsets leaves each subset's sample as it is
        random = np.random.default_rng(
            [DEFAULT_SEED if self.seed is None else self.seed, zlib.crc32(name.encode())]
        )
        return rows.take(np.sort(random.choice(len(rows), self.num_samples, replace=False)))

    def read_eval(self) -> list[EvalRows]:
        """Read the evaluation rows of the chosen subsets, in the order of the scoreboard."""
        subsets = self._layout.eval_subsets(self.eval_subsets)
        return [
            read_eval(self._layout.files("eval", subset.name), subset, blind=self.blind) for subset in subsets
        ]

    def images(self, part: Part) -> ImageRoot | None:
        """The root of the training or of the evaluation images."""
        return self._layout.images(part)

    def _source(self) -> str:
        return f"`{self.root}` (expected images/ or images.zip in it)"
