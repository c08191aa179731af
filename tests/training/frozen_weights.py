"""Modules with frozen weights, their checkpoints, and the runs that write these; for the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import nn

from fanoise_lightning import (
    CachedFeatures,
    ContrastiveModule,
    Encoder,
    InfoNCE,
    MMEBDataModule,
    TwoTowerEncoder,
    VisionLanguageEncoder,
)

LARGE = 256  # bytes: smaller weights are always saved


def change_one_weight(folder: str) -> None:
    file = Path(folder) / "model.safetensors"
    weights = load_file(file)
    weights["text_model.encoder.layers.0.mlp.fc1.weight"][3, 5] += 2**-20
    save_file(weights, file, {"format": "pt"})


def with_frozen_towers(folder: str) -> TwoTowerEncoder:
    """CLIP of which only the two projections are trained."""
    encoder = TwoTowerEncoder(folder)
    encoder.network.vision_model.requires_grad_(False)
    encoder.network.text_model.requires_grad_(False)
    return encoder


def of(encoder: Encoder, **options: Any) -> ContrastiveModule:
    return ContrastiveModule(encoder, InfoNCE(0.1), optimizer=partial(torch.optim.AdamW, lr=1e-2), **options)


def trainer_of(*callbacks: Any, **options: Any) -> Trainer:
    off = ("logger", "enable_progress_bar", "enable_model_summary")
    return Trainer(
        **{
            "callbacks": list(callbacks),
            "accelerator": "cpu",
            "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks),
            "limit_val_batches": 0,
            "max_steps": 3,
            **dict.fromkeys(off, False),
            **options,
        }
    )


def data() -> MMEBDataModule:
    """Eight batches an epoch."""
    return MMEBDataModule(
        "emoji",
        train_subsets=["renderer"],
        eval_subsets=["renderer"],
        num_samples=32,
        batch_size=4,
        num_workers=0,
    )


def save(module: ContrastiveModule, path: Path) -> dict[str, Any]:
    """Write a checkpoint of a module that was not trained; what is in the file."""
    trainer = trainer_of()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return torch.load(path, weights_only=True)


def disturb(module: nn.Module) -> nn.Module:
    """Training, as far as a checkpoint is concerned: what is not frozen changes."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return module


def assert_same(one: nn.Module, other: nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


def large(parameters: Iterator[tuple[str, nn.Parameter]], trained: bool) -> set[str]:
    return {n for n, p in parameters if p.requires_grad is trained and p.numel() * p.element_size() > LARGE}


BUILDERS: dict[str, Callable[[str, str, Path], Encoder]] = {
    "lora": lambda qwen, clip, folder: VisionLanguageEncoder(qwen, lora={"r": 2}),
    "lora of bfloat16": lambda qwen, clip, folder: VisionLanguageEncoder(
        qwen, lora={"r": 2}, dtype="bfloat16"
    ),
    "dora": lambda qwen, clip, folder: TwoTowerEncoder(clip, lora={"r": 2, "dora": True}),
    "frozen towers": lambda qwen, clip, folder: with_frozen_towers(clip),
    "frozen vision": lambda qwen, clip, folder: VisionLanguageEncoder(qwen, freeze_vision=True),
    "cached features": lambda qwen, clip, folder: CachedFeatures(TwoTowerEncoder(clip), folder, "mlp"),
}
