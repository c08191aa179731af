"""FANoise in a LightningModule that knows nothing about it: a plain CLIP-style module, and one callback.

python examples/drop_in.py
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fanoise_lightning.callbacks import FANoise


class ClipLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.66))

    def forward(self, image_features, text_features):
        logits = self.logit_scale.exp() * image_features @ text_features.T
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class TwoTowers(LightningModule):
    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.image_tower = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * 16 * 16, 128), nn.GELU(), nn.Linear(128, dim)
        )
        self.text_tower = nn.EmbeddingBag(100, dim)
        self.criterion = ClipLoss()

    def training_step(self, batch, batch_idx):
        images, tokens = batch
        image_features = F.normalize(self.image_tower(images), dim=1)
        text_features = F.normalize(self.text_tower(tokens), dim=1)
        loss = self.criterion(image_features, text_features)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def captioned_noise(pairs: int = 512) -> TensorDataset:
    """Random images, each with eight tokens that encode the brightness of its regions."""
    images = torch.rand(pairs, 3, 16, 16)
    tokens = (F.adaptive_avg_pool2d(images.mean(1), (2, 4)).flatten(1) * 100).long()
    return TensorDataset(images, tokens)


if __name__ == "__main__":
    seed_everything(42)
    trainer = Trainer(
        max_epochs=3,
        log_every_n_steps=4,
        logger=False,
        enable_checkpointing=False,
        callbacks=[FANoise(alpha=0.1)],  # the only change
    )
    trainer.fit(TwoTowers(), DataLoader(captioned_noise(), batch_size=64, shuffle=True))
    print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})
