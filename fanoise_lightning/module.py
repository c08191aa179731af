"""ContrastiveModule: an encoder, a contrastive loss and an optimiser."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from fanoise_lightning.describe import describe
from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.encoders.families import refuse_remote_code
from fanoise_lightning.losses import InfoNCE
from fanoise_lightning.metrics import PrecisionAtOne
from fanoise_lightning.sample import Collate, Sample
from fanoise_lightning.schedules import LinearWarmup
from fanoise_lightning.scoreboard import Scoreboard, SubsetScore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = ["ContrastiveModule"]

Batch = dict[str, Any]


class ContrastiveModule(LightningModule):
    """Trains an encoder so that queries find their targets, and scores it by precision@1.

    Embeddings are normalised here, right before the loss; noise is none of its business (add
    :class:`~fanoise_lightning.callbacks.FANoise` to the trainer).

    Logged in training: ``train/loss``, and at the trainer's log interval ``train/accuracy`` (the share of
    queries whose own target is the nearest in the batch), ``train/logit_scale`` (1 / temperature) and
    ``train/pairs_per_second`` (over all ranks). In validation and test: ``val/precision_at_1/...`` and
    ``test/precision_at_1/...`` for each subset and mean; the whole board is in :attr:`scoreboard`.

    Args:
        encoder: turns samples into embeddings.
        loss: called with the unit embeddings of queries and targets, each (B, D), and of hard negatives
            (M, D) where the batch has any. By default InfoNCE at a temperature of 0.02.
        optimizer: builds the optimiser from the trainable parameters.
        lr_scheduler: builds the schedule from the optimiser; it is stepped once an optimiser step.

    Example:
        >>> module = ContrastiveModule(OpenClipEncoder("ViT-B-32"))        # doctest: +SKIP
        >>> Trainer(max_steps=100, callbacks=[FANoise()]).fit(module, MMEBDataModule())    # doctest: +SKIP
        >>> ContrastiveModule.load_from_checkpoint("last.ckpt")            # doctest: +SKIP
    """

    def __init__(
        self,
        encoder: Encoder,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=2e-5, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.loss = InfoNCE() if loss is None else loss
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self.scoreboard: Scoreboard | None = None
        self._metrics: list[PrecisionAtOne] = []
        self._pairs = 0
        self._since = 0.0
        self._record_hyperparameters()

    def _record_hyperparameters(self) -> None:
        """Keep what ``load_from_checkpoint`` needs: a CLI run's config, else a description in its form."""
        modules = ["encoder", "loss", "optimizer", "lr_scheduler"]
        self.save_hyperparameters(ignore=modules)
        if "_instantiator" in self.hparams:  # built by the CLI: its config is complete
            self.save_hyperparameters()
            return
        parts = dict(zip(modules, (self.encoder, self.loss, self._optimizer, self._lr_scheduler)))
        known = {name: describe(part) for name, part in parts.items() if part is not None}
        description = {name: value for name, value in known.items() if value is not None}
        if "encoder" in description and "loss" in description:
            description["_instantiator"] = "lightning.pytorch.cli.instantiate_module"  # type: ignore[assignment]
            self.save_hyperparameters(description)

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, *args: Any, trust_remote_code: bool = False, **kwargs: Any
    ) -> ContrastiveModule:
        """Build the module again from a checkpoint alone, as Lightning does.

        Args:
            checkpoint_path: a path, URL or open file.
            args: as Lightning's.
            trust_remote_code: run the Python code of an encoder whose checkpoint brings its own. What the
                checkpoint itself says of it does not count.
            kwargs: as Lightning's; ``encoder=...`` and the like replace what the checkpoint describes.

        Raises:
            ValueError: if the encoder needs remote code and it is not trusted.
        """
        with nullcontext() if trust_remote_code else refuse_remote_code():
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    @property
    def collate(self) -> Collate:
        """Samples to the arguments of the encoder; data modules run it in their workers."""
        return self.encoder.collate

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Unit embeddings (B, D), float32 or the autocast dtype, of a collated batch of B samples."""
        return F.normalize(self.encoder(**inputs), dim=1)

    # Training

    def on_fit_start(self) -> None:
        # Pretrained encoders come in eval mode and Lightning keeps it: dropout would stay off in silence.
        self.train()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        query, target = self(batch["query"]), self(batch["target"])
        negatives = (self(batch["negatives"]),) if "negatives" in batch else ()
        loss = self.loss(query, target, *negatives)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(query))
        self._pairs += len(query)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_statistics(query.detach(), target.detach())
        return loss

    def _log_statistics(self, query: Tensor, target: Tensor) -> None:
        own = torch.arange(len(query), device=query.device)
        accuracy = ((query @ target.T).argmax(dim=1) == own).float().mean()
        self.log("train/accuracy", accuracy, prog_bar=True, batch_size=len(query))
        scale = getattr(self.loss, "scale", None)
        if scale is not None:
            self.log("train/logit_scale", scale, batch_size=len(query))
        now = time.perf_counter()
        pairs = self._pairs * self.trainer.world_size / (now - self._since)
        self.log("train/pairs_per_second", pairs, prog_bar=True, batch_size=len(query))
        self._pairs, self._since = 0, now

    def on_train_epoch_start(self) -> None:
        self._pairs, self._since = 0, time.perf_counter()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        if self._lr_scheduler is None:
            return optimizer
        scheduler = self._lr_scheduler(optimizer)
        if isinstance(scheduler, LinearWarmup) and scheduler.total_steps is None:
            scheduler.total_steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Validation and test: each subset's different texts and pictures are embedded once, then compared

    def on_validation_epoch_start(self) -> None:
        self._start_scoring(self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        self._start_scoring(self.trainer.test_dataloaders)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._score(batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._score(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._end_scoring("val", self.trainer.val_dataloaders)
        self._pairs, self._since = 0, time.perf_counter()

    def on_test_epoch_end(self) -> None:
        self._end_scoring("test", self.trainer.test_dataloaders)

    def _start_scoring(self, loaders: Any) -> None:
        self._metrics = [
            PrecisionAtOne(data.queries, data.candidates, name=data.subset.name).to(self.device)
            for data in _datasets(loaders)
        ]

    def _score(self, batch: Batch, dataloader_idx: int) -> None:
        if len(batch["index"]):
            self._metrics[dataloader_idx].update(self(batch["inputs"]), batch["index"])

    def _end_scoring(self, stage: str, loaders: Any) -> None:
        if self.trainer.sanity_checking:  # a few batches of each subset: no score
            self._metrics = []
            return
        rows = [
            SubsetScore.of(data.subset, metric.compute())
            for data, metric in zip(_datasets(loaders), self._metrics, strict=True)
        ]
        self._metrics = []
        self.scoreboard = Scoreboard(rows)
        self.log_dict(self.scoreboard.metrics(stage))

    # Embeddings

    @torch.inference_mode()
    def embed(self, samples: Sequence[Sample], batch_size: int = 256) -> Tensor:
        """Embed samples: the encoder in eval mode, on its device, in batches.

        Args:
            samples: n texts, pictures or both.
            batch_size: how many go through the encoder at once.

        Returns:
            (n, D) unit vectors, float32, on the CPU.

        Example:
            >>> vectors = module.embed([Sample("a red apple"), Sample(image=picture)])   # doctest: +SKIP
            >>> vectors @ vectors.T                                                      # doctest: +SKIP
        """
        modes = {part: part.training for part in self.modules()}
        self.eval()
        try:
            parts = [torch.empty(0, self.encoder.embedding_dim)]
            for start in range(0, len(samples), batch_size):
                inputs = self.collate(samples[start : start + batch_size])
                parts.append(self({k: v.to(self.device) for k, v in inputs.items()}).float().cpu())
            return torch.cat(parts)
        finally:
            for part, training in modes.items():
                part.training = training

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """``{"index": (n,), "embeddings": (n, D)}``: which of the subset's samples, and their embeddings."""
        if not len(batch["index"]):
            embeddings = torch.empty(0, self.encoder.embedding_dim, device=self.device)
        else:
            embeddings = self(batch["inputs"])
        return {"index": batch["index"], "embeddings": embeddings}


def _datasets(loaders: Any) -> list[Any]:
    datasets = [loader.dataset for loader in (loaders if isinstance(loaders, (list, tuple)) else [loaders])]
    for dataset in datasets:
        if not hasattr(dataset, "candidates"):
            raise TypeError(
                f"ContrastiveModule evaluates subsets (fanoise_lightning.data.datasets.EvalDataset), got "
                f"{type(dataset).__name__}; use MMEBDataModule or PairDataModule for the evaluation loaders"
            )
    return datasets
