"""MMEB, and any data in its layout: subsets to train and evaluate on, under one root."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from fanoise_lightning._checks import check_at_least, check_choice
from fanoise_lightning._log import report
from fanoise_lightning.data.batches.mixing import BatchSubsets, Sampling
from fanoise_lightning.data.datamodule import DEFAULT_SEED, ContrastiveDataModule, MaskSameTarget
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.rows.records import EvalRows, TrainRows, read_eval, read_train
from fanoise_lightning.data.sources.layouts import Layout, Part, open_root
from fanoise_lightning.data.streaming.blocks import TrainStream
from fanoise_lightning.sample import Collate

__all__ = ["MMEBDataModule"]

OPENED_AT_ONCE = 8  # streams that are opened in parallel


class MMEBDataModule(ContrastiveDataModule):
    """Trains on a mixture of subsets in MMEB's layout, and evaluates on many subsets at once.

    `root` is one of:

    - ``"hf://datasets/TIGER-Lab"``: MMEB on the Hugging Face hub. The rows and image archives of the chosen
      subsets are downloaded once into the hub's cache.
    - a folder with ``MMEB-train/`` and ``MMEB-eval/``, which hold all or some files of these repositories,
      as ``fanoise data --root`` downloads them. Images are read from the archives, or from ``images/`` if
      they are unpacked.
    - a folder in this library's layout, for any other data; ``"emoji"``, the embedded benchmark, is one::

        root/subsets.json             name, meta-task and distribution of each evaluation subset; name and
                                      meta-task of training subsets with other names
        root/train/<subset>.parquet   or .jsonl, .jsonl.gz, or a folder of parquet shards; MMEB's columns
        root/eval/<subset>.parquet    likewise
        root/images/ or images.zip

    Images that cannot be read, or that the encoder refuses, are skipped, counted and reported. In training
    another row of the same subset replaces theirs; in evaluation the item is skipped.

    Args:
        root: where rows and images are: ``"hf://datasets/TIGER-Lab"``, a folder with MMEB's repositories, a
            folder with ``subsets.json``, or ``"emoji"``.
        batch_size: training pairs per process and step.
        eval_batch_size: texts and images per process and evaluation step.
        train_subsets: names of the subsets to train on; ``None`` for all.
        eval_subsets: names of the subsets to evaluate on; ``None`` for all.
        split: which of MMEB's training rows: ``"original"``, or ``"diverse_instruction"`` with paraphrased
            instructions.
        streaming: read training rows as they are needed, instead of all before the first step. Choose it for
            rows that do not fit into memory, or for files on the hub that do not fit on the disk.
        num_samples: take this many rows of each training subset, or this share of its rows (a float from 0
            to 1), rounded up; ``None`` for all.
        sample: which rows `num_samples` takes: the ``"first"``, or ``"random"`` ones, which depend only on
            `seed` and the name of the subset.
        sampling: each subset's share of an epoch: ``"proportional"`` to its size, ``"uniform"``, a
            temperature T (weights ``size ** (1 / T)``), or a weight for each subset (0 leaves it out).
        batch_subsets: ``"mixed"`` draws each batch from all subsets, ``"single"`` from one, and a number
            interleaves blocks of this many rows of one subset.
        shuffle_block: with `streaming`, how many rows of a subset are shuffled together.
        mask_same_target: in which subsets other right answers in the batch, such as the same target of
            another pair, do not count as negatives: ``"classification"`` (where targets are few), ``"all"``
            or ``"none"``. Hard negatives that are right answers are excluded in all subsets, except with
            ``"none"``.
        blind: drop the query images in training and evaluation, to measure what can be solved without them.
        num_workers: processes per loader that decode images and tokenise.
        seed: seed of the order of the training rows, and of a random sample. With ``None`` the order has the
            seed of the run (``seed_everything``, or else 42), and the sample is the same in all runs.
        max_skipped: the share of the training rows, or of the evaluation items, that may be skipped before
            the run stops. The same share, rounded up, applies to each subset.
        decode_size: open JPEG files at the smallest scale (1, 1/2, 1/4, 1/8) whose shorter side still has
            this many pixels, which is several times as fast for large photographs. It should not be less
            than the size that the encoder resizes to. ``None`` opens them in full size.
        collate: turns samples into tensors; by default the module's own.

    Raises:
        HubError: if a download fails repeatedly (in `prepare_data`).
        FileNotFoundError: if the folder, a file or a subset is missing (in `setup`).
        ValueError: for an invalid argument; for an unknown subset, wrong columns or rows, or an empty subset
            (in `setup`); for fewer rows than a global batch needs (in `train_dataloader`).

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
        num_samples: int | float | None = None,
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
        check_choice("mask_same_target", mask_same_target, MaskSameTarget)
        check_choice("sample", sample, ("first", "random"))
        check_num_samples(num_samples)
        if streaming and sample == "random":
            raise ValueError(
                "`sample='random'` takes rows from all over the files, but a stream reads them from the "
                "start: use `streaming=False`, or `sample='first'`"
            )
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
        if root == "emoji":
            root = Path(__file__).with_name("emoji")
        # not as a path: it may be a URL
        self.root = Path(root).expanduser() if str(root).startswith("~") else root
        self.split = split
        self.train_subsets, self.eval_subsets = train_subsets, eval_subsets
        self.streaming, self.blind = streaming, blind
        self.num_samples, self.sample = num_samples, sample

    @cached_property
    def _layout(self) -> Layout:
        return open_root(self.root, self.split)

    @property
    def source_name(self) -> str:
        """The root."""
        return str(self.root)

    def prepare_data(self) -> None:
        """Download what the run needs and does not have yet; Lightning calls it once per node."""
        fit = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        self._layout.prepare(self.train_subsets, self.eval_subsets, fit=fit, rows=not self.streaming)

    def read_train(self) -> list[TrainRows] | list[TrainStream]:
        """Read the training rows of the chosen subsets, or open their streams."""
        names = self._layout.train_names(self.train_subsets)
        self._report_masks(names)
        if self.streaming:
            with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:  # mostly waiting for the hub
                return list(pool.map(self._open_stream, names))
        return [self._read_rows(name) for name in names]

    def _masks(self, name: str) -> bool:
        if self.mask_same_target == "classification":
            return self._layout.meta_task(name) == "classification"
        return self.mask_same_target == "all"

    def _report_masks(self, names: list[str]) -> None:
        """Say what is masked in each training subset, and warn of subsets about which it is not known."""
        masked = [name for name in names if self._masks(name)]
        others = [name for name in names if name not in masked]
        parts = []
        if masked:
            parts.append(f"pairs and hard negatives in {', '.join(masked)}")
        if others:
            what = "nothing" if self.mask_same_target == "none" else "hard negatives alone"
            parts.append(f"{what} in {', '.join(others)}")
        report(f"mask_same_target={self.mask_same_target} masks {'; '.join(parts)}")
        unknown = [name for name in names if self._layout.meta_task(name) is None]
        if unknown and self.mask_same_target == "classification":
            entry = json.dumps({"name": unknown[0], "meta_task": "classification"})
            rank_zero_warn(
                f"`{self.root}`: subsets.json does not say what the training subsets {', '.join(unknown)} "
                f"are. If one is classification, add an entry such as {entry}; otherwise pairs with the same "
                "target are each other's negatives"
            )

    def _open_stream(self, name: str) -> TrainStream:
        rows, num_rows = self._layout.stream(name)
        masks, samples = self._masks(name), how_many(self.num_samples, num_rows)
        return TrainStream(name, rows, num_rows, masks, num_samples=samples, blind=self.blind)

    def _read_rows(self, name: str) -> TrainRows:
        # a share is of the rows that can be used, which are known only when all are read
        limit = self.num_samples if self.sample == "first" and isinstance(self.num_samples, int) else None
        files, masks = self._layout.files("train", name), self._masks(name)
        rows = read_train(files, name, limit=limit, blind=self.blind, mask_same_target=masks)
        samples = how_many(self.num_samples, len(rows))
        if samples is None or len(rows) <= samples:
            return rows
        if self.sample == "first":
            return rows.take(np.arange(samples))
        seed = DEFAULT_SEED if self.seed is None else self.seed
        # the name is part of the seed, so that the sample does not depend on the other subsets
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return rows.take(np.sort(random.choice(len(rows), samples, replace=False)))

    def read_eval(self) -> list[EvalRows]:
        """Read the evaluation rows of the chosen subsets, in the order of the scoreboard."""
        subsets = self._layout.eval_subsets(self.eval_subsets)
        return [
            read_eval(self._layout.files("eval", subset.name), subset, blind=self.blind) for subset in subsets
        ]

    def images(self, part: Part) -> ImageRoot | None:
        """The image root of the training or evaluation rows, ``None`` if there is none."""
        return self._layout.images(part)


def check_num_samples(num_samples: float | None) -> None:
    """Raise ValueError if this is neither a number of rows nor a share of them."""
    if num_samples is None:
        return
    if isinstance(num_samples, bool) or not isinstance(num_samples, int | float):
        raise TypeError(f"`num_samples` must be a number of rows or a share of them, got {num_samples!r}")
    if isinstance(num_samples, int):
        check_at_least("num_samples", num_samples, 1)
    elif not (0 < num_samples <= 1 or _is_count(num_samples)):
        raise ValueError(
            "`num_samples` as a float is a share of the rows and must lie between 0 and 1, got "
            f"{num_samples}; pass an int for a number of rows"
        )


def _is_count(num_samples: float) -> bool:
    """Whether it is a number of rows: the command line may read 50000 as 50000.0.

    ``int | float`` and ``float | int`` are equal, so that a cache of the typing module hands out the one that
    any library made first; jsonargparse converts to the first type that fits.
    """
    return num_samples > 1 and num_samples.is_integer()


def how_many(num_samples: float | None, num_rows: int) -> int | None:
    """The number of rows that `num_samples` takes of `num_rows`; ``None`` for all.

    Example:
        >>> how_many(0.25, 10), how_many(25, 10), how_many(25.0, 10)
        (3, 25, 25)
    """
    if num_samples is None or isinstance(num_samples, int) or _is_count(num_samples):
        return None if num_samples is None else int(num_samples)
    # a share such as 0.07 of 100 is 7, not 8: a product of floats may be slightly too large
    return math.ceil(round(num_samples * num_rows, 6))
