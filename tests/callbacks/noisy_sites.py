"""Modules with noise inside, and what they see of it; for the tests."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from plain_module import Pairs, PlainModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from fanoise_lightning import ContrastiveModule, Encoder, InfoNCE


class Seen(Callback):
    """What a module was called with, noise included, and what it returned, before the noise of its output."""

    def __init__(self, path: str = "net") -> None:
        self.path = path
        self.calls: list[tuple[Tensor, Any]] = []

    def on_train_start(self, trainer, pl_module) -> None:
        module = pl_module.get_submodule(self.path)
        module.register_forward_hook(lambda _, args, output: self.calls.append((args[0].detach(), output)))


def quiet(*callbacks: Callback, **options: Any) -> Trainer:
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **dict.fromkeys(off, False), **options)


def fit(module: Any, *callbacks: Callback, steps: int = 3, **options: Any) -> Any:
    quiet(*callbacks, max_steps=steps, **options).fit(module, DataLoader(Pairs(), batch_size=8))
    return module


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


class Outputs(PlainModule):
    """Its part returns the features in some container."""

    def __init__(self, wrap: Any, unwrap: Any) -> None:
        super().__init__()
        self.part = nn.Identity()
        self.part.forward = wrap
        self.unwrap = unwrap
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []

    def embed(self, x: Tensor) -> Tensor:
        features = self.net(x)
        after = self.unwrap(self.part(features))
        self.before.append(features.detach())
        self.after.append(after.detach())
        return F.normalize(after.reshape(len(x), -1), dim=1)


class Drops(Encoder):
    embedding_dim = 8

    def __init__(self, **checkpointing: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 8)
        self.drop = nn.Dropout(0.3)
        self.checkpointing = checkpointing

    def run(self, x: Tensor) -> Tensor:
        return self.drop(self.head(x))

    def forward(self, x: Tensor) -> Tensor:
        if not self.checkpointing:
            return self.run(x)
        return checkpoint(self.run, x.requires_grad_(), **self.checkpointing)


class Contrasts(ContrastiveModule):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        query, target = ({"x": x} for x in batch)
        if self.chunk_size:
            query, target = ([{"x": x} for x in side["x"].split(3)] for side in (query, target))
        return super().training_step({"query": query, "target": target}, batch_idx)


def contrasts(chunk_size: int | None = None) -> Contrasts:
    return Contrasts(Drops(), InfoNCE(0.1), chunk_size=chunk_size)
