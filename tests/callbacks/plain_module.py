"""A user's module that has never heard of the library, and what tests of callbacks do with it."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fanoise_lightning import InfoNCE
from fanoise_lightning.callbacks import FANoise

DIM = 8


class Pairs(TensorDataset):
    def __init__(self, rows: int = 48) -> None:
        generator = torch.Generator().manual_seed(0)
        query = torch.randn(rows, 6, generator=generator)
        super().__init__(query, query + 0.1 * torch.randn(rows, 6, generator=generator))


class PlainModule(LightningModule):
    """A user's module that has never heard of the library."""

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(6, DIM)
        self.criterion = InfoNCE(temperature=0.1) if loss is None else loss
        self.losses: list[float] = []
        self.val_losses: list[float] = []

    def embed(self, x):
        return F.normalize(self.net(x), dim=1)

    def compute_loss(self, batch):
        return self.criterion(self.embed(batch[0]), self.embed(batch[1]))

    def training_step(self, batch, batch_idx):
        loss = self.compute_loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.val_losses.append(self.compute_loss(batch).item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(nn.Module):
    """A loss that keeps what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, query, target):
        self.calls.append((query.detach().clone(), target.detach().clone()))
        return (query * target).sum().square()


def fit(module, callbacks=(), max_steps=6, batch_size=8, ckpt_path=None, val=False, data=None, **kwargs):
    trainer = Trainer(
        max_steps=max_steps,
        callbacks=[*callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        **{"accelerator": "cpu", "num_sanity_val_steps": 0, **kwargs},
    )
    loader = DataLoader(Pairs(), batch_size=batch_size) if data is None else data
    trainer.fit(module, loader, DataLoader(Pairs(), batch_size=8) if val else None, ckpt_path=ckpt_path)
    return trainer


def hooks_of(module) -> int:
    return sum(len(m._forward_pre_hooks) for m in module.modules())


def noise_seen(callback: FANoise, steps: int = 1, **kwargs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The noise of each step: what the loss saw with the callback, less the clean embeddings."""
    module = PlainModule(Recorder())
    clean: list[tuple[torch.Tensor, torch.Tensor]] = []
    module.embed = lambda x, embed=module.embed: clean.append(embed(x)) or clean[-1]
    fit(module, [callback], max_steps=steps, **kwargs)
    pairs = zip(clean[::2], clean[1::2])
    return [(q - cq.detach(), t - ct.detach()) for (q, t), (cq, ct) in zip(module.criterion.calls, pairs)]
