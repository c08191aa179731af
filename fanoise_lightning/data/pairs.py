"""The user's own pairs: one file, a part of which is held out to validate on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fanoise_lightning.data.datamodule import ContrastiveDataModule
from fanoise_lightning.data.image_roots import ImageRoot
from fanoise_lightning.data.records import EvalRows, TrainRows, pad_candidates, read_train
from fanoise_lightning.data.sides import unique_sides
from fanoise_lightning.data.subsets import Subset
from fanoise_lightning.sample import Collate

__all__ = ["PairDataModule"]


class PairDataModule(ContrastiveDataModule):
    """Fine-tune on pairs of your own: a JSON-lines or parquet file with MMEB's training columns.

    Columns: ``qry``, ``qry_image_path``, ``pos_text``, ``pos_image_path``, and for hard negatives
    ``neg_text``, ``neg_image_path`` (a text, or a list). An empty path is no picture.

    A part of the pairs is held out, as a retrieval subset ``validation``: each query has to find its target
    among other targets that were held out. All pairs of a query, and both directions of a pair, are on one
    side of the split. After ``setup``, ``eval_sets[0]`` holds what was held out.

    Args:
        path: the file, or a folder of parquet shards.
        image_root: folder or zip that the picture paths are relative to; by default the folder of `path`.
        val_fraction: share of the pairs that is held out.
        num_candidates: of each validation query, its target included.
        batch_size: training pairs per process and step.
        eval_batch_size: sides per process and evaluation step.
        blind: drop the query pictures in training and validation.
        mask_same_target: pairs of a batch with the same target are not each other's negatives: in ``"all"``
            batches, or in ``"none"``.
        num_workers: processes that decode and tokenise, per loader.
        seed: of the split, the candidates and the order.
        max_skipped: share of the training rows, or of the validation sides, whose pictures may be unreadable
            before the run stops.
        decode_size: open JPEG files at the smallest scale (1, 1/2, 1/4, 1/8) whose shorter side still has so
            many pixels: several times as fast for large photographs. At least the size that the encoder
            resizes to; ``None`` opens them in full.
        collate: turns samples into tensors; by default that of the module that is trained.

    Raises:
        FileNotFoundError: if the file or the image root is missing (in `setup`).
        ValueError: for wrong columns or rows, or a split that leaves one part empty (in `setup`).

    Example:
        >>> data = PairDataModule("pairs.jsonl", image_root="pictures.zip")  # doctest: +SKIP
        >>> trainer.fit(module, datamodule=data)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | None = None,
        val_fraction: float = 0.1,
        num_candidates: int = 1000,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        blind: bool = False,
        mask_same_target: Literal["all", "none"] = "all",
        num_workers: int = 2,
        seed: int = 42,
        max_skipped: float = 0.01,
        decode_size: int | None = None,
        collate: Collate | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            mask_same_target=mask_same_target,
            num_workers=num_workers,
            seed=seed,
            max_skipped=max_skipped,
            decode_size=decode_size,
            collate=collate,
        )
        if not 0 < val_fraction < 1:
            raise ValueError(f"`val_fraction` must lie between 0 and 1, got {val_fraction}")
        if num_candidates < 2:
            raise ValueError(
                f"`num_candidates` must be at least 2 (the target and another), got {num_candidates}"
            )
        self.path, self.image_root = Path(path), None if image_root is None else Path(image_root)
        self.val_fraction, self.num_candidates, self.blind = val_fraction, num_candidates, blind
        self._parts: tuple[TrainRows, TrainRows] | None = None

    def _split(self) -> tuple[TrainRows, TrainRows]:
        """The rows to train on and the rows held out."""
        if self._parts is None:
            masks = self.mask_same_target == "all"
            rows = read_train(self.path, self.path.stem, blind=self.blind, mask_same_target=masks)
            _, codes = unique_sides(rows.queries, rows.targets)
            group_of = group_pairs(codes[: len(rows)], codes[len(rows) :])
            held_out = hold_out(group_of, self.val_fraction, self.seed)
            if held_out.all() or not held_out.any():
                raise ValueError(
                    f"`{self.path}`: val_fraction={self.val_fraction} of {len(rows)} pairs with "
                    f"{len(np.unique(group_of))} different queries leaves nothing to "
                    f"{'train' if held_out.all() else 'validate'} on"
                )
            self._parts = rows.take(np.flatnonzero(~held_out)), rows.take(np.flatnonzero(held_out))
        return self._parts

    def read_train(self) -> list[TrainRows]:
        """Read the pairs that are not held out."""
        return [self._split()[0]]

    def read_eval(self) -> list[EvalRows]:
        """Read the pairs that are held out, and draw their candidates."""
        rows = self._split()[1]
        sides, codes = unique_sides(rows.queries, rows.targets)
        queries, targets = codes[: len(rows)], codes[len(rows) :]
        candidates = draw_candidates(queries, targets, self.num_candidates, self.seed)
        floors = {"chance": float((1 / (candidates >= 0).sum(axis=1)).mean())}
        subset = Subset("validation", "retrieval", "IND", floors)
        return [EvalRows(subset, sides, queries, candidates, rows.embedded)]

    def images(self, part: Literal["train", "eval"]) -> ImageRoot | None:
        """The image root, by default the folder of the pairs."""
        return self._images

    @cached_property
    def _images(self) -> ImageRoot:  # one for both parts: an archive is opened once
        return ImageRoot(self.path.parent if self.image_root is None else self.image_root)


def group_pairs(queries: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which pairs must stay together: those of one query, and those that are there in both directions."""
    pairs = set(zip(queries.tolist(), targets.tolist()))
    group = {query: query for query, _ in pairs}

    def root(query: int) -> int:
        while group[query] != query:
            query = group[query] = group[group[query]]
        return query

    for query, target in sorted(pairs):
        if (target, query) in pairs:
            group[root(query)] = root(target)
    return np.array([root(query) for query in queries.tolist()], dtype=np.int64)


def hold_out(group_of: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose whole groups at random until they hold `fraction` of the rows, or a little more."""
    sizes = np.bincount(group_of)
    order = np.random.default_rng(seed).permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    return np.isin(group_of, order[before < round(fraction * len(group_of))])


def draw_candidates(
    queries: NDArray[np.int64], targets: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """For each query its target, and at most ``count - 1`` others that are not right answers as well."""
    random = np.random.default_rng(seed)
    pool = np.unique(targets)
    answers: dict[int, set[int]] = {}
    for query, target in zip(queries.tolist(), targets.tolist()):
        answers.setdefault(query, set()).add(target)
    rows = []
    for query, target in zip(queries.tolist(), targets.tolist()):
        right = answers[query]
        drawn = random.choice(pool, min(len(pool), count + len(right)), replace=False).tolist()
        rows.append([target, *[side for side in drawn if side not in right][: count - 1]])
    return pad_candidates(rows)
