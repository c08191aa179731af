"""Pairs of your own: one file, partly held out for validation."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from fanoise_lightning._checks import check_at_least, check_choice
from fanoise_lightning._log import report
from fanoise_lightning.data.datamodule import DEFAULT_SEED, ContrastiveDataModule
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.rows.answers import chance_of, merge_answers
from fanoise_lightning.data.rows.records import EvalRows, TrainRows, pad_candidates, read_train
from fanoise_lightning.data.rows.references import unique_references
from fanoise_lightning.data.rows.splits import Pairs, Split, count_candidates, no_distractors, split
from fanoise_lightning.data.rows.tables import subset_name
from fanoise_lightning.sample import Collate
from fanoise_lightning.subset import Subset

__all__ = ["PairDataModule", "draw_candidates", "number_pairs"]


class PairDataModule(ContrastiveDataModule):
    """Fine-tunes on pairs of your own, partly held out for validation.

    The pairs are rows of a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file with MMEB's training columns:
    ``qry``, ``qry_image_path``, ``pos_text``, ``pos_image_path``, and for hard negatives ``neg_text`` and
    ``neg_image_path``, which hold one value or a list. An empty path means no image.

    The held-out pairs are the evaluation subset ``validation``, after `setup` in ``eval_sets[0]``. Each query
    has to find its target, or its targets if it is in several pairs, among other held-out targets; the query
    itself is no candidate. A query without a wrong candidate is skipped, with a warning.

    Pairs that share a query, a target or an image, directly or through other pairs, are held out together or
    not at all, and so are both directions of a pair: nothing that is validated on was trained on. If a few
    labels connect most of the pairs, that is impossible; then only the pairs of a query stay together, and a
    warning says how many of the targets are trained on too.

    Args:
        path: the file of pairs, or a folder of parquet shards.
        image_root: the folder or zip archive that image paths are relative to; by default the folder of
            `path`, and that of `val_path` for its pairs.
        val_fraction: the share of the pairs that is held out for validation.
        num_candidates: candidates of each validation query with one target, if there are that many; a query
            with several targets has as many wrong ones. ``None`` for the whole catalogue: all held-out
            targets.
        batch_size: training pairs per process and step.
        eval_batch_size: texts and images per process and evaluation step.
        blind: drop the query images in training and validation, to measure what can be solved without them.
        mask_same_target: whether right answers of other pairs in the batch, such as the same target, do not
            count as negatives: in ``"all"`` batches or in ``"none"``.
        num_workers: processes per loader that decode images and tokenise.
        seed: seed of the order of the training pairs; ``None`` for that of the run (``seed_everything``, or
            else 42).
        max_skipped: the share of the training rows, or of the validation items, whose images may be
            unreadable before the run stops.
        decode_size: open JPEG files at the smallest scale (1, 1/2, 1/4, 1/8) whose shorter side still has
            this many pixels, which is several times as fast for large photographs. It should not be less
            than the size that the encoder resizes to. ``None`` opens them in full size.
        collate: turns samples into tensors; by default the module's own.
        val_path: validation pairs of your own, with the same columns; then no pairs are held out.
        split_seed: seed of the split and the candidates, which do not depend on `seed`.

    Raises:
        FileNotFoundError: if the file or the image root is missing (in `setup`).
        ValueError: for an invalid argument; for wrong columns or rows, or if no split leaves something to
            find (in `setup`).

    Example:
        >>> data = PairDataModule("pairs.jsonl", image_root="images.zip")  # doctest: +SKIP
        >>> trainer.fit(module, datamodule=data)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | None = None,
        val_fraction: float = 0.1,
        num_candidates: int | None = 1000,
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
        check_choice("mask_same_target", mask_same_target, ("all", "none"))
        if num_candidates is not None:
            check_at_least("num_candidates", num_candidates, 2)  # the target and another
        if not 0 < val_fraction < 1:
            raise ValueError(f"`val_fraction` must lie between 0 and 1, got {val_fraction}")
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
        self.path = Path(path).expanduser()
        self.val_path = None if val_path is None else Path(val_path).expanduser()
        self.image_root = None if image_root is None else Path(image_root).expanduser()
        self.val_fraction, self.num_candidates, self.blind = val_fraction, num_candidates, blind
        self.split_seed = split_seed
        self._parts: tuple[TrainRows, TrainRows, str] | None = None

    def _split(self) -> tuple[TrainRows, TrainRows, str]:
        """The rows to train on, the rows to validate on, and how they were split."""
        if self._parts is None:
            rows = self._read(self.path)
            if self.val_path is not None:
                self._parts = rows, self._read(self.val_path), f"those of `{self.val_path}`"
            else:
                found = self._find_split(rows)
                train = rows.take(np.flatnonzero(~found.held_out))
                held_out = rows.take(np.flatnonzero(found.held_out))
                self._parts = train, held_out, f"split by {found.by}"
        return self._parts

    def _read(self, path: Path) -> TrainRows:
        masks = self.mask_same_target == "all"
        return read_train(path, subset_name(path), blind=self.blind, mask_same_target=masks)

    def _find_split(self, rows: TrainRows) -> Split:
        (pairs,) = number_pairs(rows)
        wanted = round(self.val_fraction * len(rows))
        asked = f"`{self.path}`: val_fraction={self.val_fraction} of {len(rows)} pairs"
        if not 0 < wanted < len(rows):
            raise ValueError(f"{asked} leaves nothing to {'train' if wanted else 'validate'} on")
        found = split(pairs, self.val_fraction, self.split_seed)
        if found is None:
            raise ValueError(
                f"{asked} with {len(np.unique(pairs.queries))} different queries and "
                f"{len(np.unique(pairs.targets))} different targets: no split leaves something to train on, "
                "and queries with two candidates; pass another `val_fraction`, or a `val_path`"
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
        catalogue = None
        if self.num_candidates is None:
            candidates, catalogue = targets[:, None], np.unique(targets)
        else:
            candidates = draw_candidates(queries, targets, self.num_candidates, self.split_seed)
        enough = count_candidates(pairs) > 1
        if not enough.all():  # their targets stay candidates of others
            self._report_alone(rows, enough)
            queries, candidates, pairs = queries[enough], candidates[enough], pairs.take(enough)
        held_out = items.take(np.union1d(queries, candidates[:, 0]))
        queries, candidates, num_right = merge_answers(queries, candidates)
        counts, chance = chance_of(queries, candidates, num_right, catalogue)
        details = f"{counts.min()} to {counts.max()} candidates, chance {chance:.1%}"
        hard = pc.sum(pc.is_in(held_out.keys, value_set=train.all_negatives.keys)).as_py()
        if hard:
            details += f"; {hard} of {len(held_out)} items are hard negatives of training pairs"
        self._report_overlap(trained, pairs, how, details)
        subset = Subset("validation", "retrieval", "IND", {"chance": chance})
        return [EvalRows(subset, items, queries, candidates, rows.embedded, num_right, catalogue)]

    def _report_alone(self, rows: TrainRows, enough: NDArray[np.bool_]) -> None:
        """Warn of the queries that are skipped because they have fewer than two candidates.

        Raises:
            ValueError: if all have fewer.
        """
        alone = np.flatnonzero(~enough)
        first = int(alone[0])
        found = (
            f"{len(alone)} of {len(rows)} validation queries have no candidate but right answers and "
            f"themselves (the first: {rows.queries[first].text!r}, {rows.where(first)})"
        )
        if not enough.any():
            raise ValueError(f"{found}: any model would be right; validate on more different targets")
        rank_zero_warn(f"{found}; they are skipped")

    def _report_overlap(self, trained: Pairs, pairs: Pairs, how: str, details: str) -> None:
        """Say how the pairs were split, and warn if validation pairs are partly trained on."""
        seen = pairs.seen(trained)
        overlap = ", ".join(f"{count} of {total} {name}" for name, (count, total) in seen.items() if total)
        tell = rank_zero_warn if any(count for count, _ in seen.values()) else report
        tell(
            f"`{self.path}`: {len(trained)} pairs to train on, {len(pairs)} to validate on ({how}), of which "
            f"{overlap} are trained on too; {details}"
        )

    def images(self, part: Literal["train", "eval"]) -> ImageRoot | None:
        """The image root, by default the folder of the pairs."""
        if self.image_root is None and self.val_path is not None and part == "eval":
            return self._val_images
        return self._images

    @cached_property
    def _images(self) -> ImageRoot:  # one for both parts: an archive is opened once
        return ImageRoot(self.path.parent if self.image_root is None else self.image_root)

    @cached_property
    def _val_images(self) -> ImageRoot:
        assert self.val_path is not None
        return ImageRoot(self.val_path.parent)


def number_pairs(*parts: TrainRows) -> list[Pairs]:
    """The pairs of each part as numbers, which mean the same in all parts."""
    groups = [group for rows in parts for group in (rows.queries, rows.targets)]
    _, references = unique_references(*groups)
    images = _number_images(pa.concat_arrays([group.images for group in groups]))
    pairs, start = [], 0
    for rows in parts:
        queries = slice(start, start + len(rows))
        targets = slice(queries.stop, queries.stop + len(rows))
        pairs.append(Pairs(references[queries], references[targets], images[queries], images[targets]))
        start = targets.stop
    return pairs


def _number_images(paths: pa.Array) -> NDArray[np.int64]:
    """Image paths as numbers, -1 for none."""
    codes = pc.dictionary_encode(pc.if_else(pc.equal(paths, ""), None, paths)).indices
    return codes.fill_null(-1).to_numpy().astype(np.int64)


def draw_candidates(
    queries: NDArray[np.int64], targets: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """The candidates of each query: its target, and at most ``count - 1`` wrong answers.

    The query itself is not among them: in a file with both directions of the pairs it is a target too, and
    nothing is more similar to it.

    Args:
        queries: (N,), see `Pairs`.
        targets: (N,), see `Pairs`.
        count: candidates of a query.
        seed: of the draw.

    Returns:
        ``(N, C)``, the target in column 0, ``-1`` after the last.
    """
    random = np.random.default_rng(seed)
    pool = np.unique(targets)
    excluded = no_distractors(queries, targets)
    rows = []
    for query, target in zip(queries.tolist(), targets.tolist()):
        right = excluded[query]
        drawn = random.choice(pool, min(len(pool), count + len(right)), replace=False).tolist()
        wrong = [reference for reference in drawn if reference not in right]
        rows.append([target, *wrong[: count - 1]])
    return pad_candidates(rows)
