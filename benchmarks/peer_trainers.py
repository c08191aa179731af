"""One training run by each library: the same towers, pairs, batch size, loss and optimiser.

Each opens the pictures and reads the texts as its users do, and none clips gradients, saves checkpoints or
shows progress. All report their metrics every 50 steps.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from fanoise_lightning import ContrastiveModule, InfoNCE, OpenClipEncoder, PairDataModule, TwoTowerEncoder

TEMPERATURE, LOG_EVERY = 0.05, 50
WORDS = ("a", "the", "red", "green", "blue", "apple", "pear", "small", "on", "under", "table", "photo", "of")


@dataclass(frozen=True)
class Job:
    """What is trained on.

    Args:
        texts: one for each picture, all different.
        images: the files of the pictures.
        batch_size: of pairs.
        workers: processes of the loader.
        device: ``"cpu"``, ``"cuda"``, ...
    """

    texts: list[str]
    images: list[str]
    batch_size: int
    workers: int
    device: str

    def loader(self, dataset: Dataset[Any], collate: Callable[..., Any] | None = None) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            self.batch_size,
            shuffle=True,
            num_workers=self.workers,
            collate_fn=collate,
            drop_last=True,
        )


def write_pairs(folder: Path, rows: int, pixels: int) -> tuple[list[str], list[str]]:
    """Different texts, and JPEG files of noise that was blurred as photographs are."""
    draw, noise = random.Random(0), np.random.default_rng(0)
    texts, files = [], []
    for row in range(rows):
        texts.append(" ".join([*draw.choices(WORDS, k=draw.randint(1, 8)), str(row)]))
        small = Image.fromarray(noise.integers(0, 256, (pixels // 8, pixels // 8, 3), dtype=np.uint8))
        files.append(str(folder / f"{row}.jpg"))
        small.resize((pixels, pixels), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return texts, files


def adamw(parameters: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0, fused=True)


class Rows(Dataset[tuple[str, Image.Image]]):
    """The pairs of a job, each picture opened."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __len__(self) -> int:
        return len(self.job.texts)

    def __getitem__(self, row: int) -> tuple[str, Image.Image]:
        return self.job.texts[row], Image.open(self.job.images[row]).convert("RGB")


def ours(encoder: Any, loss: nn.Module, job: Job) -> None:
    module = ContrastiveModule(encoder, loss, adamw)
    pairs = [{"query": text, "target": image} for text, image in zip(job.texts, job.images)]
    data = PairDataModule(
        pairs, "query", "target", val=pairs[:2], batch_size=job.batch_size, num_workers=job.workers
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=1,
        accelerator=job.device,
        devices=1,
        limit_val_batches=0,
        log_every_n_steps=LOG_EVERY,
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(module, data)


class Clip:
    """The CLIP of transformers, from a folder: queries are texts, targets are pictures."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.encoder = TwoTowerEncoder(folder)

    def fanoise(self, job: Job) -> None:
        ours(copy.deepcopy(self.encoder), InfoNCE(TEMPERATURE), job)

    def plain(self, job: Job) -> None:
        from transformers import AutoProcessor, CLIPModel

        network = CLIPModel.from_pretrained(self.folder).to(job.device).train()
        processor = AutoProcessor.from_pretrained(self.folder)

        def collate(rows: list[tuple[str, Image.Image]]) -> Any:
            texts, images = zip(*rows)
            options = {"return_tensors": "pt", "padding": True, "truncation": True}
            return processor(text=list(texts), images=list(images), **options)

        optimizer = adamw([p for name, p in network.named_parameters() if name != "logit_scale"])
        for batch in job.loader(Rows(job), collate):
            batch = {name: value.to(job.device) for name, value in batch.items()}
            image = network.get_image_features(pixel_values=batch.pop("pixel_values")).pooler_output
            text = network.get_text_features(**batch).pooler_output
            logits = F.normalize(text, dim=1) @ F.normalize(image, dim=1).T / TEMPERATURE
            loss = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def sentence_transformers(self, job: Job) -> None:
        from datasets import Dataset as Table
        from datasets import Image as Picture
        from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
        from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        model = SentenceTransformer(self.folder, device=job.device)
        table = Table.from_dict({"anchor": job.texts, "positive": job.images}).cast_column(
            "positive", Picture()
        )
        with tempfile.TemporaryDirectory() as out:
            arguments = Arguments(
                out,
                per_device_train_batch_size=job.batch_size,
                num_train_epochs=1,
                dataloader_num_workers=job.workers,
                dataloader_drop_last=True,
                max_grad_norm=0,
                lr_scheduler_type="constant",
                logging_steps=LOG_EVERY,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=job.device == "cpu",
            )
            loss = MultipleNegativesRankingLoss(model, 1 / TEMPERATURE)
            optimizers = (adamw(model.parameters()), None)
            SentenceTransformerTrainer(model, arguments, table, loss=loss, optimizers=optimizers).train()


class OpenClip:
    """An open_clip model from a JSON config: both directions, with a learned temperature.

    Its trainer gets a loader that does what its own ``CsvDataset`` does, whose module needs further packages.
    """

    def __init__(self, config: str) -> None:
        self.encoder = OpenClipEncoder(config)

    def fanoise(self, job: Job) -> None:
        loss = InfoNCE(0.07, symmetric=True, learnable_temperature=True)
        ours(copy.deepcopy(self.encoder), loss, job)

    def _parts(self, job: Job) -> tuple[nn.Module, DataLoader[Any], torch.optim.Optimizer]:
        clip = copy.deepcopy(self.encoder.clip).to(job.device).train().requires_grad_()
        clip.output_dict = True
        collate = self.encoder.collate
        return clip, job.loader(Tensors(job, collate.preprocess, collate.tokenizer)), adamw(clip.parameters())

    def plain(self, job: Job) -> None:
        clip, loader, optimizer = self._parts(job)
        for image, text in loader:
            found = clip(image.to(job.device), text.to(job.device))
            logits = found["logit_scale"] * found["text_features"] @ found["image_features"].T
            own = torch.arange(len(logits), device=logits.device)
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def open_clip(self, job: Job) -> None:
        from open_clip import ClipLoss
        from open_clip_train.train import train_one_epoch

        clip, loader, optimizer = self._parts(job)
        loader.num_batches, loader.num_samples = len(loader), len(job.texts)
        options = argparse.Namespace(
            device=job.device,
            precision="fp32",
            distill=False,
            accum_freq=1,
            skip_scheduler=True,
            grad_clip_norm=None,
            log_every_n_steps=LOG_EVERY,
            world_size=1,
            batch_size=job.batch_size,
            rank=0,
            local_rank=0,
            log_local=False,
            wandb=False,
        )
        data = {"train": argparse.Namespace(dataloader=loader, set_epoch=lambda epoch: None)}
        train_one_epoch(clip, data, ClipLoss(), 0, optimizer, None, None, None, options)


class Tensors(Dataset[tuple[Tensor, Tensor]]):
    """open_clip's ``CsvDataset``: the tensor of each picture and the tokens of its text."""

    def __init__(self, job: Job, transform: Any, tokenizer: Any) -> None:
        self.job, self.transform, self.tokenizer = job, transform, tokenizer

    def __len__(self) -> int:
        return len(self.job.texts)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image = self.transform(Image.open(self.job.images[row]))
        return image, self.tokenizer([self.job.texts[row]])[0]
