"""Pairs of your own, partly held out for validation."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from fanoise_lightning._checks import check_at_least, check_choice
from fanoise_lightning._log import report
from fanoise_lightning.data.datamodule import DEFAULT_SEED, ContrastiveDataModule
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.images.same_files import name_files, other_paths
from fanoise_lightning.data.rows.answers import chance_of, left_out, merge_answers
from fanoise_lightning.data.rows.records import EvalRows, TrainRows, pad_candidates
from fanoise_lightning.data.rows.references import References, number_references, text_hashes
from fanoise_lightning.data.rows.splits import Pairs, Split, count_candidates, draw_candidates, split
from fanoise_lightning.data.sources.any_source import open_source
from fanoise_lightning.data.sources.hub_repository import HUB
from fanoise_lightning.data.sources.negatives import join_negatives
from fanoise_lightning.data.sources.pair_rows import read_pairs
from fanoise_lightning.data.sources.roles import choose_pair
from fanoise_lightning.data.sources.source import Source
from fanoise_lightning.sample import Collate
from fanoise_lightning.subset import Subset

__all__ = ["PairDataModule", "number_pairs"]

HELD_OUT = 1000  # pairs, by default, as many as MMEB's subsets have queries
Rows = str | Path | list[dict[str, str]]  # what a config or a checkpoint may name; in Python any source


class PairDataModule(ContrastiveDataModule):
    """Fine-tunes on pairs of your own, partly held out for validation.

    The pairs are rows of a file (``.jsonl``, ``.json``, ``.parquet``, ``.csv`` or ``.tsv``; all but parquet
    may be compressed, as ``.gz``), of a DataFrame, of a `datasets.Dataset` or of a list, or the pictures of a
    folder with their texts. A side of a pair is a text, a picture, or both. A column holds pictures if its
    values are images, bytes or paths of image files. An empty path means no image.

    The held-out pairs are the evaluation subset ``validation``, after `setup` in ``eval_sets[0]``. Each query
    has to find its target, or its targets if it is in several pairs, among other held-out targets; the query
    itself is no candidate. A query without a wrong candidate is skipped, with a warning.

    Pairs that share a query, a target or an image, directly or through other pairs, are held out together or
    not at all, and so are both directions of a pair: nothing that is validated on was trained on. If a few
    labels connect most of the pairs, that is impossible; then only the pairs of a query stay together, and a
    warning says how many of the targets are trained on too.

    Args:
        source: the path of a file of pairs, of a folder of parquet files, or of a folder of pictures, whose
            texts are the names of its subfolders, else those of the files, or are in its ``metadata.csv``;
            the id of a data set on the hub, of which the split ``train`` is read; a DataFrame (pandas,
            polars, Arrow); a `datasets.Dataset`; or a list of dicts or of `Pair`.
        query: the column of the queries; a column of texts and one of pictures, as a list, for both. By
            default, `query` and `target` follow from the names of the columns, which is reported: those of
            MMEB (``qry``, ``qry_image_path``, ``pos_text``, ...) and sentence-transformers (``anchor``,
            ``positive``, ``negative``), or a text such as ``caption`` for the only column of pictures.
        target: the column or columns of the targets. Each value of a list makes a pair.
        negatives: the column or columns of hard negatives, which hold one value or a list; columns
            ``negative_1``, ``negative_2`` and so on are read as one column ``negative``.
        image_root: the folder or zip archive that image paths are relative to; by default the folder of
            `source`, and that of `val` for its pairs. Absolute paths are followed, except those of a data
            set from the hub.
        val_fraction: the share of the pairs that is held out for validation; by default a tenth, but no more
            than 1000 pairs.
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
        val: validation pairs of your own, as `source`, with the same columns; then none are held out.
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
        source: Rows,
        query: str | list[str] | None = None,
        target: str | list[str] | None = None,
        negatives: str | list[str] | None = None,
        image_root: str | Path | None = None,
        val_fraction: float | None = None,
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
        val: Rows | None = None,
        split_seed: int = DEFAULT_SEED,
    ) -> None:
        check_choice("mask_same_target", mask_same_target, ("all", "none"))
        if num_candidates is not None:
            check_at_least("num_candidates", num_candidates, 2)  # the target and another
        if val_fraction is not None and not 0 < val_fraction < 1:
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
        self.source, self.val = source, val
        self.query, self.target, self.negatives = query, target, negatives
        self.image_root = None if image_root is None else Path(image_root).expanduser()
        self.val_fraction, self.num_candidates, self.blind = val_fraction, num_candidates, blind
        self.split_seed = split_seed
        self._parts: tuple[_Part, _Part, str] | None = None
        self._overlap: dict[str, list[int]] = {}

    def _split(self) -> tuple[_Part, _Part, str]:
        """The pairs to train on, the pairs to validate on, and how they were split."""
        if self._parts is None:
            rows = self._read(self._opened, self._images)
            if self._val_opened is not None:
                held_out = self._read(self._val_opened, self._val_images)
                parts = ((rows, self._images), (held_out, self._val_images))
                pairs, held_out_pairs = number_pairs(*(_with_files(*part) for part in parts))
                how = f"those of `{self._val_opened.name}`"
                self._parts = _Part(rows, pairs), _Part(held_out, held_out_pairs), how
            else:
                whole = _Part(rows, *number_pairs(rows))
                found = self._find_split(whole.pairs)
                how = f"split by {found.by}"
                if self.val_fraction is None and 0.1 * len(whole.pairs) > HELD_OUT:
                    how += f"; no more than about {HELD_OUT}, unless `val_fraction` says so"
                self._parts = whole.take(~found.held_out), whole.take(found.held_out), how
        return self._parts

    def _read(self, source: Source, images: ImageRoot) -> TrainRows:
        columns = choose_pair(source, self.query, self.target, self.negatives)
        masks = self.mask_same_target == "all"
        rows = read_pairs(source, columns, blind=self.blind, mask_same_target=masks)
        paths = rows.paths
        images.check_sample(paths, source.name)
        return rows.with_paths(other_paths(images, paths.to_pylist()))

    def _find_split(self, pairs: Pairs) -> Split:
        fraction = min(0.1, HELD_OUT / len(pairs)) if self.val_fraction is None else self.val_fraction
        wanted = round(fraction * len(pairs))
        asked = f"`{self._opened.name}`: val_fraction={fraction:.3g} of {len(pairs)} pairs"
        if not 0 < wanted < len(pairs):
            raise ValueError(f"{asked} leaves nothing to {'train' if wanted else 'validate'} on")
        found = split(pairs, fraction, self.split_seed)
        if found is None:
            raise ValueError(
                f"{asked} with {len(np.unique(pairs.queries))} different queries and "
                f"{len(np.unique(pairs.targets))} different targets: no split leaves something to train on, "
                "and queries with two candidates; pass another `val_fraction`, or `val`"
            )
        return found

    @property
    def source_name(self) -> str:
        """What messages call the source; ``hf://datasets/...`` for one of the hub."""
        return self._opened.name if self._opened.absolute else HUB + self._opened.name

    def _trained_on(self) -> dict[str, Any] | None:
        trained_on = super()._trained_on()
        return trained_on and {**trained_on, "overlap": self._overlap}

    def read_train(self) -> list[TrainRows]:
        """Read the pairs that are not held out."""
        return [self._split()[0].rows]

    def read_eval(self) -> list[EvalRows]:
        """Read the pairs to validate on, and draw their candidates."""
        (train, trained), (rows, pairs), how = self._split()
        known = pairs.known(trained)  # right answers that are trained on
        numbers = np.concatenate([pairs.queries, pairs.targets])
        unique, first, codes = np.unique(numbers, return_index=True, return_inverse=True)
        items = References.cat(rows.queries, rows.targets).take(first)
        queries, targets = codes[: len(rows)], codes[len(rows) :]
        trained_right = np.searchsorted(unique, known[0]), np.searchsorted(unique, known[1])
        catalogue = excluded = None
        if self.num_candidates is None:
            candidates, catalogue = targets[:, None], np.unique(targets)
        else:
            candidates = draw_candidates(
                queries, targets, self.num_candidates, self.split_seed, trained_right
            )
        enough = count_candidates(pairs, known) > 1
        if not enough.all():  # their targets stay candidates of others
            self._report_alone(rows, enough)
            queries, candidates, pairs = queries[enough], candidates[enough], pairs.take(enough)
        held_out = items.take(np.union1d(queries, candidates[:, 0]))
        queries, candidates, num_right = merge_answers(queries, candidates)
        others, num_excluded = left_out(queries, candidates, trained_right)
        if catalogue is not None and len(others):
            excluded = pad_candidates(others, num_excluded)
        counts, chance = chance_of(queries, candidates, num_right, catalogue, num_excluded)
        details = f"{counts.min()} to {counts.max()} candidates, chance {chance:.1%}"
        if len(others):
            details += (
                f"; of {np.count_nonzero(num_excluded)} queries, {len(others)} candidates are left out that "
                "are right by training pairs"
            )
        same = number_references(held_out, train.all_negatives)
        if empty := train.num_empty + (0 if self.val is None else rows.num_empty):
            details += f"; {empty} rows without a query or target are left out"
        hard = len(np.intersect1d(same[: len(held_out)], same[len(held_out) :]))
        if hard:
            details += f"; {hard} of {len(held_out)} items are hard negatives of training pairs"
        self._report_overlap(trained, pairs, how, details)
        subset = Subset("validation", "retrieval", "IND", {"chance": chance})
        return [EvalRows(subset, items, queries, candidates, rows.embedded, num_right, catalogue, excluded)]

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
        self._overlap = {name: list(counts) for name, counts in seen.items()}
        overlap = ", ".join(f"{count} of {total} {name}" for name, (count, total) in seen.items() if total)
        tell = rank_zero_warn if any(count for count, _ in seen.values()) else report
        tell(
            f"`{self._opened.name}`: {len(trained)} pairs to train on, {len(pairs)} to validate on ({how}), "
            f"of which {overlap} are trained on too; {details}"
        )

    def images(self, part: Literal["train", "eval"]) -> ImageRoot | None:
        """The image root, by default the folder of the pairs."""
        return self._images if part == "train" else self._val_images

    @cached_property
    def _opened(self) -> Source:
        return join_negatives(open_source(self.source))

    @cached_property
    def _val_opened(self) -> Source | None:
        return None if self.val is None else join_negatives(open_source(self.val))

    @cached_property
    def _images(self) -> ImageRoot:
        return self._root(self._opened)

    @cached_property
    def _val_images(self) -> ImageRoot:
        opened = self._val_opened
        # one for both parts, if possible: an archive is opened once
        if opened is None or (self.image_root is not None and opened.absolute == self._opened.absolute):
            return self._images
        return self._root(opened)

    def _root(self, source: Source) -> ImageRoot:
        folder = source.folder if self.image_root is None else self.image_root
        return ImageRoot(folder, absolute=source.absolute)


class _Part(NamedTuple):
    """Pairs to train or to validate on, and their numbers, which mean the same in both."""

    rows: TrainRows
    pairs: Pairs

    def take(self, which: NDArray[np.bool_]) -> _Part:
        return _Part(self.rows.take(np.flatnonzero(which)), self.pairs.take(which))


def _with_files(rows: TrainRows, images: ImageRoot) -> TrainRows:
    """The rows with the files that their paths open, which may be relative to different roots."""
    paths = rows.paths.to_pylist()
    return rows.with_paths(dict(zip(paths, name_files(images, paths))))


def number_pairs(*parts: TrainRows) -> list[Pairs]:
    """The pairs of each part as numbers, which mean the same in all parts."""
    groups = [group for rows in parts for group in (rows.queries, rows.targets)]
    references = number_references(*groups)
    images = _number_images(pa.chunked_array([group.images for group in groups]))
    pairs, start = [], 0
    for rows in parts:
        queries = slice(start, start + len(rows))
        targets = slice(queries.stop, queries.stop + len(rows))
        pairs.append(Pairs(references[queries], references[targets], images[queries], images[targets]))
        start = targets.stop
    return pairs


def _number_images(paths: pa.ChunkedArray) -> NDArray[np.int64]:
    """Image paths as numbers, -1 for none."""
    hashes = text_hashes(paths)
    codes = np.unique(hashes, return_inverse=True)[1]
    return np.where(hashes == 0, -1, codes)
