"""What shorter embeddings cost: cut as they are, after a spectral rotation, or trained with MatryoshkaLoss.

    OMP_NUM_THREADS=1 python benchmarks/truncation.py --features runs/features [--seeds 5]

Heads on frozen towers, as in examples/configs/emoji_head.yaml, with and without noise. Shown is precision@1
out of distribution, in percent, the mean over the seeds and the half width of its 95 % interval; below it,
the same runs compared seed by seed with embeddings that are cut as they are. With the features computed, a
seed takes two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from scipy.stats import t as student
from torch import Tensor

from fanoise_lightning import (
    CachedFeatures,
    ContrastiveModule,
    Encoder,
    FANoise,
    InfoNCE,
    MatryoshkaLoss,
    MMEBDataModule,
    PackagedTowers,
)
from fanoise_lightning.export.rotation import spectral_rotation

DIM = 256
DIMS = [DIM, DIM // 2, DIM // 4, DIM // 8, DIM // 16]
NOISE: dict[str, dict[str, Any] | None] = {
    "none": None,
    "sublinear": {"alpha": 0.5, "energy": "constant"},
    "uniform": {"alpha": 0.5, "energy": "constant", "scaling": "uniform"},
}


class Cut(Encoder):
    """An encoder whose unit embeddings are rotated and cut."""

    def __init__(self, encoder: Encoder, rotation: Tensor, dim: int) -> None:
        super().__init__()
        self.encoder, self.embedding_dim, self.collate = encoder, dim, encoder.collate
        self.register_buffer("rotation", rotation[:, :dim])

    def forward(self, **batch: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(self.encoder(**batch), dim=1)
        return unit @ self.rotation  # type: ignore[operator]


def run(
    features: str, seed: int, noise: dict[str, Any] | None, matryoshka: bool, steps: int, pairs: int
) -> dict[str, list[float]]:
    """Precision@1 out of distribution by how embeddings are cut and their length."""
    seed_everything(seed, verbose=False)
    loss: Any = InfoNCE(temperature=0.1)
    if matryoshka:
        loss = MatryoshkaLoss(loss, DIMS)
    encoder = CachedFeatures(PackagedTowers(), features, head="mlp", dim=DIM, hidden=DIM)
    optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.01, fused=True)
    module = ContrastiveModule(encoder, loss, optimizer=optimizer)
    data = MMEBDataModule("emoji", batch_size=128, num_workers=0, num_samples=pairs or None, sample="random")
    callbacks: list[Callback] = [FANoise(**noise)] if noise else []
    make = partial(
        Trainer,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer = make(max_steps=steps, limit_val_batches=0, callbacks=callbacks)
    trainer.fit(module, data)
    identity, rotation = torch.eye(DIM), spectral_rotation(embeddings_of(module, data))
    found: dict[str, list[float]] = {"cut": [], "rotated": []}
    for how, basis in (("cut", identity), ("rotated", rotation)):
        for dim in DIMS:
            module.encoder = Cut(encoder, basis, dim)
            make().validate(module, data, verbose=False)
            found[how].append(100 * module.scoreboard.metrics("val")["val/precision_at_1/OOD"])
    return found


@torch.inference_mode()
def embeddings_of(module: LightningModule, data: MMEBDataModule, batches: int = 40) -> Tensor:
    """Queries and targets of some training batches, (N, D)."""
    module.eval()
    read = islice(data.train_dataloader(), batches)
    return torch.cat([module(batch[side]) for batch in read for side in ("query", "target")])


def shown(values: list[float]) -> str:
    """Mean and half width of the 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:6.1f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):6.1f} ±{half:4.1f}"


def table(runs: dict[str, list[dict[str, list[float]]]]) -> None:
    """Every arm, as it is and against the plain cut of the same runs."""
    print(f"\n{'':32}" + "".join(f"{f'D = {dim}':>14}" for dim in DIMS))
    for arm, seeds in runs.items():
        for how in ("cut", "rotated"):
            columns = [[seed[how][i] for seed in seeds] for i in range(len(DIMS))]
            print(f"{arm + ', ' + how:32}" + "".join(f"{shown(c):>14}" for c in columns))
    print("\nrotated - cut, and MatryoshkaLoss - cut, seed by seed")
    for arm, seeds in runs.items():
        plain = runs[arm.replace("matryoshka", "InfoNCE")]
        pairs = [("rotated", seeds)] if plain is seeds else [("cut", seeds), ("rotated", seeds)]
        for how, ours in pairs:
            columns = [[a[how][i] - b["cut"][i] for a, b in zip(ours, plain)] for i in range(len(DIMS))]
            print(f"{arm + ', ' + how:32}" + "".join(f"{shown(c):>14}" for c in columns))


def main() -> None:
    """Run what is not yet in the file of results, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", default="runs/features")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=435)
    parser.add_argument("--pairs", type=int, default=0, help="of each training subset; 0 for all")
    parser.add_argument("--results", type=Path, default=Path("runs/truncation.json"))
    given = parser.parse_args()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(given.results.read_text()) if given.results.exists() else {}
    for seed in range(given.seeds):
        for name, noise in NOISE.items():
            for loss in ("InfoNCE", "matryoshka"):
                key = f"{loss}, {name}"
                if len(done.setdefault(key, [])) > seed:
                    continue
                matryoshka = loss == "matryoshka"
                done[key].append(run(given.features, seed, noise, matryoshka, given.steps, given.pairs))
                given.results.write_text(json.dumps(done))
                print(seed, key, done[key][-1], flush=True)
    table(done)


if __name__ == "__main__":
    main()
