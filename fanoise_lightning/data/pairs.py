"""The user's own pairs: one file, a part of which is held out to validate on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from fanoise_lightning.data.datamodule import DEFAULT_SEED, ContrastiveDataModule
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.rows.records import EvalRows, TrainRows, pad_candidates, read_train
from fanoise_lightning.data.rows.references import unique_references
from fanoise_lightning.data.rows.splits import Pairs, Split, count_candidates, hold_out, no_distractors, split
from fanoise_lightning.data.rows.tables import subset_name
from fanoise_lightning.sample import Collate
from fanoise_lightning.subset import Subset

__all__ = ["PairDataModule", "draw_candidates", "hold_out", "number_pairs"]


class PairDataModule(ContrastiveDataModule):
    """Fine-tune on pairs of your own: a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file with MMEB's training
    columns.

    Columns: ``qry``, ``qry_image_path``, ``pos_text``, ``pos_image_path``, and for hard negatives
    ``neg_text``, ``neg_image_path`` (a text, or a list). An empty path is no image.

    A part of the pairs is held out, as a retrieval subset ``validation``: each query has to find its target
    among other targets that were held out; neither other right answers nor the query itself are among them.
    Pairs that are connected by a query, a target or an image are on one side of the split, and so are both
    directions of a pair: what is validated on was not trained on. Where a few labels connect most pairs that
    cannot be, and the pairs of a query are kept together; a warning then says how many of the targets are
    trained on as well. A validation query that would have its target as the only candidate is left out, with
    a warning. After ``setup``, ``eval_sets[0]`` holds what was held out.

    Args:
        path: the file, or a folder of parquet shards.
        image_root: folder or zip that the image paths are relative to; by default the folder of `path`, and
            of `val_path` for its pairs.
        val_path: pairs of your own to validate on, with the same columns; then none are held out.
        val_fraction: share of the pairs that is held out.
        num_candidates: of each validation query, its target included, if there are so many.
        batch_size: training pairs per process and step.
        eval_batch_size: items per process and evaluation step.
        blind: drop the query images in training and validation.
        mask_same_target: pairs of a batch with the same target are not each other's negatives: in ``"all"``
            batches, or in ``"none"``.
        num_workers: processes that decode and tokenise, per loader.
        seed: of the order; ``None`` for that of the run (``seed_everything``, else 42).
        split_seed: of the split and the candidates, which so are the same in runs with other seeds.
        max_skipped: share of the training rows, or of the validation items, whose images may be unreadable
            before the run stops.
        decode_size: open JPEG files at the smallest scale (1, 1/2, 1/4, 1/8) whose shorter side still has so
            many pixels: several times as fast for large photographs. At least the size that the encoder
            resizes to; ``None`` opens them in full.
        collate: turns samples into tensors; by default that of the module that is trained.

    Raises:
        FileNotFoundError: if the file or the image root is missing (in `setup`).
        ValueError: for wrong columns or rows, or where no split leaves something to find (in `setup`).

    Example:
        >>> data = PairDataModule("pairs.jsonl", image_root="images.zip")  # doctest: +SKIP
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
        seed: int | None = None,
        max_skipped: float = 0.01,
        decode_size: int | None = None,
        collate: Collate | None = None,
        val_path: str | Path | None = None,
        split_seed: int = DEFAULT_SEED,
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
        self.path = Path(path).expanduser()
        self.val_path = None if val_path is None else Path(val_path).expanduser()
        self.image_root = None if image_root is None else Path(image_root).expanduser()
        self.val_fraction, self.num_candidates, self.blind = val_fraction, num_candidates, blind
        self.split_seed = split_seed
        self._parts: tuple[TrainRows, TrainRows, str] | None = None

    def _split(self) -> tuple[TrainRows, TrainRows, str]:
        """The rows to train on, the rows to validate on, and how they came apart."""
        if self._parts is None:
            rows = self._read(self.path)
            if self.val_path is not None:
                self._parts = rows, self._read(self.val_path), f"those of `{self.val_path}`"
            else:
                found = self._find_split(rows)
                train, held_out = (
                    rows.take(np.flatnonzero(part)) for part in (~found.held_out, found.held_out)
                )
                self._parts = train, held_out, f"split by {found.by}"
        return self._parts

    def _read(self, path: Path) -> TrainRows:
        masks = self.mask_same_target == "all"
        return read_train(path, subset_name(path), blind=self.blind, mask_same_target=masks)

    def _find_split(self, rows: TrainRows) -> Split:
        (pairs,) = number_pairs(rows)
        wanted = round(self.val_fraction * len(rows))
        told = f"`{self.path}`: val_fraction={self.val_fraction} of {len(rows)} pairs"
        if not 0 < wanted < len(rows):
            raise ValueError(f"{told} leaves nothing to {'train' if wanted else 'validate'} on")
        if (found := split(pairs, self.val_fraction, self.split_seed)) is None:
            raise ValueError(
                f"{told} with {len(np.unique(pairs.queries))} different queries and "
                f"{len(np.unique(pairs.targets))} different targets: no split leaves something to train on, "
                "and queries with two candidates; give another `val_fraction`, or a `val_path`"
            )
        return found

    def read_train(self) -> list[TrainRows]:
        """Read the pairs that are not held out."""
        return [self._split()[0]]

    def read_eval(self) -> list[EvalRows]:
        """Read the pairs to validate on, and draw their candidates."""
        train, rows, how = self._split()
        trained, pairs = number_pairs(train, rows)
        items, codes = unique_references(rows.queries, rows.targets)
        queries, targets = codes[: len(rows)], codes[len(rows) :]
        candidates = draw_candidates(queries, targets, self.num_candidates, self.split_seed)
        enough = count_candidates(pairs) > 1
        if not enough.all():  # their targets stay candidates of others
            self._report_alone(rows, enough)
            queries, candidates, pairs = queries[enough], candidates[enough], pairs.take(enough)
        counts = (candidates >= 0).sum(axis=1)
        chance = float((1 / counts).mean())
        found = f"{counts.min()} to {counts.max()} candidates, chance {chance:.1%}"
        held_out = items.take(np.union1d(queries, candidates[:, 0]))
        if hard := pc.sum(pc.is_in(held_out.keys, value_set=train.all_negatives.keys)).as_py():
            found += f"; {hard} of {len(held_out)} items are hard negatives of training pairs"
        self._describe(trained, pairs, how, found)
        subset = Subset("validation", "retrieval", "IND", {"chance": chance})
        return [EvalRows(subset, items, queries, candidates, rows.embedded)]

    def _report_alone(self, rows: TrainRows, enough: NDArray[np.bool_]) -> None:
        """Warn of the queries that are left out, as they have not two candidates.

        Raises:
            ValueError: if none has.
        """
        alone = np.flatnonzero(~enough)
        told = (
            f"{len(alone)} of {len(rows)} validation queries have no candidate but right answers and "
            f"themselves (the first: {rows.queries[int(alone[0])].text!r}, {rows.where(int(alone[0]))})"
        )
        if not enough.any():
            raise ValueError(
                f"{told}: any model would find them; validate on more, and more different, targets"
            )
        rank_zero_warn(f"{told}; they are left out")

    def _describe(self, trained: Pairs, pairs: Pairs, how: str, found: str) -> None:
        seen = pairs.seen(trained)
        told = ", ".join(f"{count} of {total} {name}" for name, (count, total) in seen.items() if total)
        say = rank_zero_warn if any(count for count, _ in seen.values()) else rank_zero_info
        say(
            f"`{self.path}`: {len(trained)} pairs to train on, {len(pairs)} to validate on ({how}), of which "
            f"{told} are trained on as well; {found}"
        )

    def images(self, part: Literal["train", "eval"]) -> ImageRoot | None:
        """The image root, by default the folder of the pairs."""
        own = self.image_root is None and self.val_path is not None and part == "eval"
        return self._val_images if own else self._images

    @cached_property
    def _images(self) -> ImageRoot:  # one for both parts: an archive is opened once
        return ImageRoot(self.path.parent if self.image_root is None else self.image_root)

    @cached_property
    def _val_images(self) -> ImageRoot:
        assert self.val_path is not None
        return ImageRoot(self.val_path.parent)


def number_pairs(*parts: TrainRows) -> list[Pairs]:
    """Each part with its references and images as numbers, which mean the same in all parts."""
    groups = [group for rows in parts for group in (rows.queries, rows.targets)]
    _, references = unique_references(*groups)
    paths = pa.concat_arrays([group.images for group in groups])
    images = pc.dictionary_encode(pc.if_else(pc.equal(paths, ""), None, paths)).indices
    images = images.fill_null(-1).to_numpy().astype(np.int64)
    ends = np.cumsum([len(group) for group in groups])[:-1]
    columns = zip(*(iter(np.split(numbers, ends)) for numbers in (references, images)))
    return [
        Pairs(queries, targets, query_images, target_images)
        for (queries, query_images), (targets, target_images) in zip(columns, columns)
    ]


def draw_candidates(
    queries: NDArray[np.int64], targets: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """For each query its target, and at most ``count - 1`` others.

    Those are neither right answers as well, nor the query itself: with both directions of the pairs, it is a
    target too, and most like itself.
    """
    random = np.random.default_rng(seed)
    pool = np.unique(targets)
    no_distractor = no_distractors(queries, targets)
    rows = []
    for query, target in zip(queries.tolist(), targets.tolist()):
        right = no_distractor[query]
        drawn = random.choice(pool, min(len(pool), count + len(right)), replace=False).tolist()
        rows.append([target, *[reference for reference in drawn if reference not in right][: count - 1]])
    return pad_candidates(rows)
