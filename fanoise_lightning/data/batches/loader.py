"""A training loader that Lightning can stop and resume in the middle of an epoch.

Lightning saves ``state_dict()`` of a loader that has one and hands it back on resume; without one, a resumed
run sees the first batches of the epoch again. The sampler's order is a function of (seed, epoch, batch), so
the state is a few integers, and a resumed run computes where it is without reading the batches before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from fanoise_lightning.data.batches.mixing import MixingSampler

__all__ = ["ResumableLoader"]


class ResumableLoader(DataLoader):
    """A `DataLoader` over a `MixingSampler` with ``state_dict`` and ``load_state_dict``.

    Its length is that of a whole epoch, even when it resumes in the middle of one.
    """

    sampler: MixingSampler
    _at: tuple[int, int] = (0, 0)  # epoch and number of batches handed out: workers run ahead of it
    _saved: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, int]:
        """The epoch, the number of its batches handed out, and how many it has."""
        return {"epoch": self._at[0], "batch": self._at[1], "batches": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass begin where `state` was taken, if it is a pass over the same epoch.

        Raises:
            ValueError: if it was taken from a stream.
        """
        if "streams" in state:
            raise ValueError("the checkpoint was written with streaming: resume with `streaming=True`")
        self._saved = state

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that workers start at the first batch and not here: Lightning asks for the iterator
        # before it sets the sampler's epoch.
        saved, self._saved = self._saved, None
        epoch, start = self.sampler.epoch, 0
        if saved is not None and saved["epoch"] == epoch:
            start = saved["batch"]
            if saved["batches"] != len(self):
                raise ValueError(
                    f"the checkpoint was written after batch {start} of {saved['batches']} of epoch {epoch}, "
                    f"but the epoch now has {len(self)} batches: resume with the same rows, `batch_size` and "
                    "number of processes, or load the weights alone"
                )
        self.sampler.start = start
        self._at = (epoch, start)
        for number, batch in enumerate(self._batches(), start + 1):
            self._at = (epoch, number)
            yield batch

    def _batches(self) -> Iterator[Any]:
        return super().__iter__()
