"""What FANoise adds to a training step: of the main job, or of heads on frozen features.

    python benchmarks/overhead.py [--steps 30]
    OMP_NUM_THREADS=1 python benchmarks/overhead.py --heads [--steps 400]

One fit, on one batch again and again: the noise is on in every other step, so that both sides see the same
machine. Medians in milliseconds; where only some of the noisy steps decompose, means.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fanoise_lightning import ContrastiveModule, InfoNCE, MMEBDataModule, OpenClipEncoder
from fanoise_lightning.callbacks import FANoise

BATCH = 128
SETTINGS: dict[str, dict[str, Any]] = {
    "uniform, at the loss": {"scaling": "uniform"},
    "uniform, input of a head": {
        "scaling": "uniform",
        "target": "image_head",
        "where": "input",
        "relative": True,
    },
    "linear, at the loss": {"scaling": "linear"},
    "sublinear, at the loss": {},
    "sublinear, every 4th step": {"every_n_steps": 8},  # of all steps, of which every other has noise
}


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
        self.batch: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if isinstance(batch, dict):
            self.batch = self.batch or dict(batch)
            batch.update(self.batch)
        self.start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


class Heads(LightningModule):
    """MLP heads as those of examples/configs/emoji_head.yaml, on features of 1280 and 384 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.image_head, self.text_head = (
            nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, 256)) for dim in (1280, 384)
        )
        self.loss = InfoNCE(temperature=0.1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        text, image = self.text_head(batch[0]), self.image_head(batch[1])
        return self.loss(F.normalize(text, dim=1), F.normalize(image, dim=1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), fused=True)


def fit(module: LightningModule, data: Any, noise: EveryOther, steps: int) -> tuple[list[float], list[float]]:
    """The seconds of the steps with and without noise, after four to warm up."""
    watch = Stopwatch()
    trainer = Trainer(
        max_steps=2 * steps + 4,
        accelerator="cpu",
        callbacks=[noise, watch],
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, data)
    return watch.seconds[4::2], watch.seconds[5::2]


def main_job(steps: int) -> None:
    module = ContrastiveModule(OpenClipEncoder("emoji-resnet"), InfoNCE(0.07))
    noisy, clean = fit(module, MMEBDataModule(batch_size=BATCH, num_workers=0), EveryOther(), steps)
    added = 100 * (statistics.median(a / b for a, b in zip(noisy, clean)) - 1)
    print(f"step without noise {1e3 * statistics.median(clean):8.1f} ms")
    print(f"step with FANoise  {1e3 * statistics.median(noisy):8.1f} ms, {added:+.1f} % (median of ratios)")


def heads(steps: int) -> None:
    rows = (2 * steps + 4) * BATCH
    data = TensorDataset(torch.randn(BATCH, 384).repeat(4, 1), torch.randn(BATCH, 1280).repeat(4, 1))
    for name, options in SETTINGS.items():
        loader = DataLoader(data, BATCH, sampler=[i % len(data) for i in range(rows)])
        noisy, clean = fit(Heads(), loader, EveryOther(**options), steps)
        average = statistics.fmean if "every_n_steps" in options else statistics.median
        before, after = 1e3 * average(clean), 1e3 * average(noisy)
        print(f"{name:28}{before:6.1f} -> {after:5.1f} ms, {100 * (after / before - 1):+.0f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--heads", action="store_true")
    given = parser.parse_args()
    steps = given.steps or (400 if given.heads else 30)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(42, verbose=False)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, {steps} steps each")
    heads(steps) if given.heads else main_job(steps)


if __name__ == "__main__":
    main()
