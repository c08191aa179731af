"""Training batches from streams: read in the main process, opened and tokenised by the workers.

Because rows are read in one place, the order does not depend on the number of workers, and each rank reads a
shard once. The sampler hands the workers rows instead of indices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from warnings import warn

from torch.utils.data import Dataset

from fanoise_lightning._checks import check_at_least
from fanoise_lightning.data.batches.loader import ResumableLoader
from fanoise_lightning.data.batches.mixing import BatchSubsets, MixingSampler
from fanoise_lightning.data.batches.refusals import Read, Refusal
from fanoise_lightning.data.batches.replacements import repeat
from fanoise_lightning.data.batches.skipped import SkipLimit, Skipped
from fanoise_lightning.data.batches.training import open_pair
from fanoise_lightning.data.images.decode import ImageError
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.columns import place
from fanoise_lightning.data.streaming.reader import Position, StreamReader, StreamRow, TrainStream
from fanoise_lightning.distributed import exchange
from fanoise_lightning.sample import Pair

__all__ = ["StreamDataset", "StreamLoader", "StreamSampler"]


class StreamDataset(Dataset):
    """Opens the rows that a `StreamSampler` hands out.

    A pair with an image that cannot be used is replaced by another pair of its batch, of its subset if there
    is one; the two are not each other's negatives. The `StreamLoader` replaces a batch without a good pair.

    Args:
        streams: the rows of each subset.
        store: opens their images.
        limit: how many rows may be skipped before the run stops.
    """

    def __init__(self, streams: Sequence[TrainStream], store: ImageStore, limit: SkipLimit) -> None:
        # not the streams themselves: the data set goes to the workers
        self._subsets = [(stream.name, stream.mask_same_target) for stream in streams]
        self._length = sum(map(len, streams))
        self.store, self.limit = store, limit

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: list[StreamRow]) -> Read:
        """The pairs of a batch, none if none can be used, and a line about each row that was skipped."""
        skipped: list[str] = []
        pairs = [self._open(row, skipped) for row in rows]
        return Read(self._fill(pairs, [self._subsets[row.subset][0] for row in rows]), skipped)

    def replace(self, read: Read, refused: Mapping[int, str], refusal: Refusal) -> Read:
        """Replace the pairs that an encoder `refused`; see `TrainDataset.replace`."""
        for at, why in refused.items():
            file, row = read.pairs[at].origin
            self._skip(read.pairs[at].subset, file, row, why, read.skipped)
        left = [None if at in refused else pair for at, pair in enumerate(read.pairs)]
        return Read(self._fill(left, [pair.subset for pair in read.pairs]), read.skipped)

    def _fill(self, pairs: Sequence[Pair | None], subsets: Sequence[str]) -> list[Pair]:
        return repeat(pairs, subsets) if any(pair is not None for pair in pairs) else []

    def _open(self, row: StreamRow, skipped: list[str]) -> Pair | None:
        name, masks = self._subsets[row.subset]
        try:
            pair = open_pair(row.query, row.target, row.negatives, self.store, subset=name, mask_pairs=masks)
        except ImageError as error:
            self._skip(name, row.file, row.row, str(error), skipped)
            return None
        return replace(pair, origin=(row.file, row.row))

    def _skip(self, subset: str, file: str, row: int, why: str, skipped: list[str]) -> None:
        skipped.append(Skipped(subset, f"subset `{subset}`, {place(file, row)}: {why}"))
        self.limit.check(skipped)


class StreamSampler(MixingSampler):
    """Yields this rank's part of every global batch as rows; see `MixingSampler` for the mixture.

    ``"mixed"`` batches are built from blocks of 1: every rank has the same subsets in the same places, so
    that all ranks reach the end of a subset together.

    Args:
        dataset: opens the rows.
        streams: the rows of each subset.
        shuffle_block: rows of a stream that are shuffled together.
        batch_subsets: as in `MixingSampler`.
        options: as in `MixingSampler`.

    Raises:
        ValueError: as in `MixingSampler`, or if `shuffle_block` is less than 1.

    Attributes:
        positions: of each stream after the batches that were handed out; ``None`` before the first.
    """

    def __init__(
        self,
        dataset: StreamDataset,
        streams: Sequence[TrainStream],
        *,
        shuffle_block: int,
        batch_subsets: BatchSubsets = "mixed",
        **options: Any,
    ) -> None:
        super().__init__(
            dataset,
            [len(stream) for stream in streams],
            [stream.name for stream in streams],
            batch_subsets=1 if batch_subsets == "mixed" else batch_subsets,
            **options,
        )
        check_at_least("shuffle_block", shuffle_block, 1)
        self.positions: list[Position] | None = None
        self._ahead: deque[list[Position]] = deque()
        self._readers = [
            StreamReader(
                stream,
                subset,
                seed=self.seed,
                rank=self.rank,
                world_size=self.num_replicas,
                shuffle_block=shuffle_block,
                prepare=dataset.store.prepare,  # missing images are found at once, and not row by row
            )
            for subset, stream in enumerate(streams)
        ]
        # what the positions depend on
        self.identity = {
            "seed": self.seed,
            "shuffle_block": shuffle_block,
            "subsets": [[stream.name, len(stream), stream.rows.num_shards] for stream in streams],
        }

    def __iter__(self) -> Iterator[list[StreamRow]]:  # type: ignore[override]
        self._ahead.clear()
        epoch = self.epoch
        order = self._order()[self.start :, :, self.rank, :, 0].reshape(-1, self.batch_size)
        used = [self._readers[subset] for subset in sorted(set(order.ravel().tolist()))]
        # a reader that this part of the epoch does not use may be elsewhere: its stream keeps its position
        positions = self.where()
        for reader in used:
            reader.seek(positions[reader.subset])
        done = False
        try:
            for batch in order.tolist():
                rows = [self._readers[subset].take() for subset in batch]
                positions = list(positions)
                for subset in batch:
                    positions[subset] = self._readers[subset].position
                self._ahead.append(positions)
                yield rows
            done = True
        finally:
            if not done:
                for reader in used:
                    reader.close()
            if lines := [line for reader in used if (line := reader.report())]:
                rank = f", rank {self.rank}" if self.num_replicas > 1 else ""
                warn(f"epoch {epoch}{rank}: {'; '.join(lines)}", stacklevel=2)

    def where(self) -> list[Position]:
        """The `positions`, or those of a new run, which starts each epoch with the pass of that number."""
        return self.positions or [Position(pass_number=self.epoch)] * len(self._readers)

    @contextmanager
    def reading_on(self) -> Iterator[None]:
        """Within this context the sampler is that of the next epoch; afterwards everything is as before."""
        before = self.epoch, self.start, self.positions, self._ahead.copy()
        self.epoch, self.start, self.positions = self.epoch + 1, 0, self._ahead[-1]
        try:
            yield
        finally:
            self.epoch, self.start, self.positions, self._ahead = before

    def hand_out(self) -> None:
        """Move `positions` past a batch that left the loader; workers and readers run ahead of it."""
        self.positions = self._ahead.popleft()


class StreamLoader(ResumableLoader):
    """A `ResumableLoader` over a `StreamSampler`: its state has the position of every stream on every rank.

    A pass over a stream does not end with the epoch: each epoch continues where the one before stopped.
    """

    sampler: StreamSampler
    dataset: StreamDataset

    def state_dict(self) -> dict[str, Any]:
        """The state of a `ResumableLoader`, and the positions; all ranks must call it together."""
        mine = tuple(number for position in self.sampler.where() for number in position)
        streams = {**self.sampler.identity, "positions": [list(rank) for rank in exchange(mine)]}
        return {**super().state_dict(), "streams": streams}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass begin where `state` was taken.

        Raises:
            ValueError: if it is the state of other streams, another order, or another number of processes.
        """
        if "streams" not in state:
            raise ValueError("the checkpoint was written without streaming: resume with `streaming=False`")
        self._saved = state
        saved, sampler = state["streams"], self.sampler
        if len(saved["positions"]) != sampler.num_replicas:
            raise ValueError(
                f"the checkpoint was written by {len(saved['positions'])} processes, this run has "
                f"{sampler.num_replicas}: streams can only be resumed with the same number of processes"
            )
        for name, now in sampler.identity.items():
            if saved.get(name) != now:
                raise ValueError(
                    f"the checkpoint was written with {name}={saved.get(name)}, this run has {now}: streams "
                    "can only be resumed with the same rows in the same order"
                )
        numbers, fields = saved["positions"][sampler.rank], len(Position._fields)
        if len(numbers) != len(sampler.sizes) * fields:
            raise ValueError(
                f"the checkpoint holds {len(numbers)} numbers for the positions of {len(sampler.sizes)} "
                f"streams, expected {fields} for each: another version wrote it; load its weights alone"
            )
        sampler.positions = [Position(*numbers[at : at + fields]) for at in range(0, len(numbers), fields)]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            self.sampler.hand_out()
            yield batch

    def _batches(self) -> Iterator[Any]:
        """The batches; the next batch with a good pair replaces one without any.

        It makes no difference then where a resumed run begins.
        """
        waiting: list[list[str]] = []  # what batches without a good pair skipped
        for batch in super()._batches():
            if "query" in batch:
                yield from ({**batch, "skipped": skipped} for skipped in waiting)
                yield batch
                waiting = []
            else:
                waiting.append(batch["skipped"])
                self.dataset.limit.check(line for skipped in waiting for line in skipped)
        if waiting:
            batch = self._next_epochs_first(waiting[-1][-1])
            yield from ({**batch, "skipped": skipped} for skipped in waiting)

    def _next_epochs_first(self, why: str) -> dict[str, Any]:
        """The first batch of the next epoch with a good pair; that epoch reads it again when it begins."""
        sampler = self.sampler
        with sampler.reading_on():
            for batch in super()._batches():
                if "query" in batch:
                    return batch
                why = batch["skipped"][-1]
        raise ImageError(f"not one pair of an epoch can be used; the last: {why}")
