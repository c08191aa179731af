"""What FANoise adds to a training step: of the main job, or of heads on frozen features.

    python benchmarks/overhead.py [--steps 30] [--device cuda] [--json FILE]
    OMP_NUM_THREADS=1 python benchmarks/overhead.py --heads [--steps 400]

One fit, on one batch again and again: the noise is on in every other step, so that both sides see the same
machine. Medians in milliseconds; where only some of the noisy steps decompose, means. Of what is added, the
median over five parts of the fit, and the least and the greatest.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import Figure, add_options, write
from fanoise_lightning import ContrastiveModule, InfoNCE, MMEBDataModule, OpenClipEncoder
from fanoise_lightning.callbacks import FANoise

BATCH = 128
PARTS = 5
WARM_UP = 8  # a multiple of every `every_n_steps` below
MAIN_TARGET, HEADS_TARGET = 1.0, 20.0  # percent of a step
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
        self.start = self._now(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.seconds.append(self._now(pl_module) - self.start)

    @staticmethod
    def _now(pl_module: LightningModule) -> float:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        return time.perf_counter()


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


def fit(
    module: LightningModule, data: Any, noise: EveryOther, steps: int, device: str
) -> tuple[list[float], list[float]]:
    """The seconds of the steps with and without noise, after eight to warm up."""
    watch = Stopwatch()
    trainer = Trainer(
        max_steps=2 * steps + WARM_UP,
        accelerator={"cpu": "cpu", "mps": "mps"}.get(device, "gpu"),
        devices=1,
        callbacks=[noise, watch],
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, data)
    return watch.seconds[WARM_UP::2], watch.seconds[WARM_UP + 1 :: 2]


def compare(name: str, noisy: list[float], clean: list[float], target: float, mean: bool = False) -> Figure:
    """Print both, and what the noise adds to a step, in percent."""
    average = statistics.fmean if mean else statistics.median
    size = len(noisy) // PARTS
    parts = [slice(size * part, size * (part + 1)) for part in range(PARTS)]
    added = [100 * (_ratio(noisy[part], clean[part], mean) - 1) for part in parts]
    median, low, high = statistics.median(added), min(added), max(added)
    before, after = 1e3 * average(clean), 1e3 * average(noisy)
    print(
        f"{name:28}{before:6.1f} -> {after:6.1f} ms, {median:+.1f} % ({low:+.1f} to {high:+.1f})", flush=True
    )
    return Figure(f"FANoise in a step, {name}", median, "%", low, high, at_most=target)


def _ratio(noisy: list[float], clean: list[float], mean: bool) -> float:
    if mean:  # a few steps decompose, the others do not: no step stands for all
        return statistics.fmean(noisy) / statistics.fmean(clean)
    return statistics.median(a / b for a, b in zip(noisy, clean))


def main_job(steps: int, device: str) -> list[Figure]:
    module = ContrastiveModule(OpenClipEncoder("emoji-resnet"), InfoNCE(0.07))
    noisy, clean = fit(module, MMEBDataModule(batch_size=BATCH, num_workers=0), EveryOther(), steps, device)
    return [compare("main job, sublinear", noisy, clean, MAIN_TARGET)]


def heads(steps: int, device: str) -> list[Figure]:
    rows = (2 * steps + WARM_UP) * BATCH
    data = TensorDataset(torch.randn(BATCH, 384).repeat(4, 1), torch.randn(BATCH, 1280).repeat(4, 1))
    figures = []
    for name, options in SETTINGS.items():
        loader = DataLoader(data, BATCH, sampler=[i % len(data) for i in range(rows)])
        noisy, clean = fit(Heads(), loader, EveryOther(**options), steps, device)
        figures.append(compare(name, noisy, clean, HEADS_TARGET, mean="every_n_steps" in options))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--heads", action="store_true")
    add_options(parser, device=True)
    given = parser.parse_args()
    steps = given.steps or (400 if given.heads else 30)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(42, verbose=False)
    where = f"{torch.get_num_threads()} threads"
    if given.device.startswith("cuda"):
        where = torch.cuda.get_device_name(given.device)
    print(f"torch {torch.__version__}, {where}, batch {BATCH}, {steps} steps each")
    write((heads if given.heads else main_job)(steps, given.device), given.json)


if __name__ == "__main__":
    main()
