"""What FANoise adds to a training step of the main job.

    python benchmarks/overhead.py [--steps 30]

One fit, on one batch again and again: the noise is on in every other step, so that both sides see the same
machine. Medians in milliseconds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from fanoise_lightning import ContrastiveModule, InfoNCE, MMEBDataModule, OpenClipEncoder
from fanoise_lightning.callbacks import FANoise


class EveryOther(FANoise):
    """The noise, in even steps alone."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_batch_start(trainer, *args)
        self._source.end()
        if trainer.fit_loop.total_batch_idx % 2 == 0:
            self._source.begin(trainer, (0, 0, 0))


class Stopwatch(Callback):
    """Gives every step the first batch, and times it from there to the end of the optimiser's step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.batch: dict[str, Any] | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch = self.batch or dict(batch)
        batch.update(self.batch)
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(42, verbose=False)
    watch = Stopwatch()
    trainer = Trainer(
        max_steps=2 * steps + 4,
        accelerator="cpu",
        callbacks=[EveryOther(), watch],
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(
        ContrastiveModule(OpenClipEncoder("emoji-resnet"), InfoNCE(0.07)), MMEBDataModule(num_workers=0)
    )
    noisy, clean = watch.seconds[4::2], watch.seconds[5::2]
    added = 100 * (statistics.median(a / b for a, b in zip(noisy, clean)) - 1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch 128, {steps} steps each")
    print(f"step without noise {1e3 * statistics.median(clean):8.1f} ms")
    print(f"step with FANoise  {1e3 * statistics.median(noisy):8.1f} ms, {added:+.1f} % (median of ratios)")


if __name__ == "__main__":
    main()
