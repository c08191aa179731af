"""ContrastiveModule: an encoder, a contrastive loss and an optimiser."""

from __future__ import annotations

import inspect
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from fanoise_lightning._lightning import should_log
from fanoise_lightning.distributed import reach_all
from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.encoders.families import refuse_remote_code
from fanoise_lightning.evaluation.batch_accuracy import batch_accuracy
from fanoise_lightning.evaluation.precision_at_one import EmbeddingTable
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scores import SubsetScore
from fanoise_lightning.losses import InfoNCE
from fanoise_lightning.losses.known_right import Identities
from fanoise_lightning.sample import Collate, Sample
from fanoise_lightning.training.checkpoints import read_hyperparameters
from fanoise_lightning.training.describe import describe
from fanoise_lightning.training.grad_cache import embed_in_chunks
from fanoise_lightning.training.lockstep import (
    Padded,
    embed_own_rows,
    is_sharded,
    largest,
    same_calls,
    same_parts,
)
from fanoise_lightning.training.resume import ResumableModule
from fanoise_lightning.training.schedules import LinearWarmup
from fanoise_lightning.training.sharding import average_gradients, shard
from fanoise_lightning.training.trust import described_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch.utilities.types import OptimizerLRScheduler

__all__ = ["ContrastiveModule"]

Batch = dict[str, Any]
SIDES = ("query", "target", "negatives")


class ContrastiveModule(ResumableModule):
    """Trains an encoder so that queries find their targets, and scores it by precision@1.

    Embeddings are normalised here, right before the loss; noise is none of its business (add
    :class:`~fanoise_lightning.callbacks.FANoise` to the trainer).

    Logged in training: ``train/loss``, and at the trainer's log interval ``train/accuracy`` (precision@1
    among the loss's candidates, but those known to be right), ``train/logit_scale`` (1 / temperature) and
    ``train/pairs_per_second`` (over all ranks). In validation and test: ``val/precision_at_1/...`` and
    ``test/precision_at_1/...`` for each subset and mean; the whole board is in :attr:`scoreboard`.

    Args:
        encoder: turns samples into embeddings.
        loss: called with the unit embeddings of queries and targets, each (B, D), and of hard negatives
            (M, D) where the batch has any. By default InfoNCE at a temperature of 0.02.
        optimizer: builds the optimiser from the trainable parameters.
        lr_scheduler: builds the schedule from the optimiser; it is stepped once an optimiser step.
        chunk_size: with GradCache, how many pairs go through the encoder at once, or two numbers: of queries,
            and of targets and hard negatives. The gradients are those of the whole batch, for the memory of a
            chunk and the time of one more forward pass. Dropout draws by chunks, batch norm sees chunks.

    Raises:
        ValueError: if ``chunk_size`` is not positive.

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
        chunk_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if chunk_size is not None and min(chunk_size if isinstance(chunk_size, tuple) else (chunk_size,)) < 1:
            raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}")
        self.encoder = encoder
        self.loss = InfoNCE() if loss is None else loss
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self.chunk_size = chunk_size
        self.scoreboard: Scoreboard | None = None
        self._table: EmbeddingTable | None = None
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
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        *,
        allow: Sequence[str] = (),
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> ContrastiveModule:
        """Build the module again from a checkpoint alone.

        A checkpoint is data: the encoder and the loss that it describes are built if they are this package's
        or torch's, or allowed. Optimiser and schedule are built, under the same rule, when the module is
        trained again, and not before.

        Args:
            checkpoint_path: a path, URL or open file.
            map_location: as Lightning's.
            hparams_file: a file that describes the module in the checkpoint's stead, under the same rule.
            strict: as Lightning's.
            weights_only: ``False`` runs whatever code is pickled in the file, from a URL too.
            allow: packages, modules or classes, as dotted paths, that the checkpoint may name besides.
            trust_remote_code: run the Python code of an encoder whose checkpoint brings its own. What the
                checkpoint itself says of it does not count.
            kwargs: ``encoder=...`` and the like replace what the checkpoint describes.

        Raises:
            ValueError: if the checkpoint names a class that is not allowed, or the encoder needs remote code
                that is not trusted.
        """
        safe = weights_only is not False
        described = described_arguments(
            cls,
            read_hyperparameters(checkpoint_path, hparams_file, safe),
            given=kwargs,
            allow=allow,
            objects=not safe and hparams_file is None,
        )
        with nullcontext() if trust_remote_code else refuse_remote_code():
            return super().load_from_checkpoint(
                checkpoint_path, map_location, None, strict, safe, **described | kwargs
            )

    @property
    def collate(self) -> Collate:
        """Samples to the arguments of the encoder; data modules run it in their workers."""
        return self.encoder.collate

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Unit embeddings (B, D), float32 or the autocast dtype, of a collated batch of B samples."""
        return F.normalize(embed_own_rows(self.encoder, inputs, self.device), dim=1)

    # Training

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # with ModelParallelStrategy
            shard(self.encoder, self.device_mesh)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.device_mesh is not None:
            average_gradients(self.parameters())

    def on_fit_start(self) -> None:
        # Pretrained encoders come in eval mode and Lightning keeps it: dropout would stay off in silence.
        self.train()
        if self.chunk_size is not None and any(isinstance(m, _BatchNorm) for m in self.encoder.modules()):
            rank_zero_warn(
                f"batch norm sees chunks of {self.chunk_size} instead of the batch, and each of them twice: "
                "with `chunk_size`, prefer an encoder without it"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        sides = self._embed_sides([batch[side] for side in SIDES if side in batch])
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            sides = reach_all(sides, [p for p in self.encoder.parameters() if p.requires_grad])
        query, target, *negatives = sides
        loss = self.loss(query, target, *negatives, **self._loss_options(batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(query))
        self._pairs += len(query)
        if should_log(self.trainer):
            self._log_statistics([query, target, *negatives], batch)
        return loss

    def _loss_options(self, batch: Batch) -> dict[str, Tensor]:
        """What the loss wants to know of the identities of a batch."""
        ids = _identities(batch)
        loss = getattr(self.loss, "_orig_mod", self.loss)  # a compiled module hides its signature
        known = inspect.signature(loss.forward).parameters
        if "mask_pairs" not in known and ids.target_ids is not None and ids.mask_pairs is not None:
            ids = ids._replace(target_ids=ids.target_ids.masked_fill(~ids.mask_pairs, -1))
        return {name: x for name, x in ids._asdict().items() if x is not None and name in known}

    def _embed_sides(self, sides: list[Any]) -> list[Tensor]:
        """Unit embeddings (B, D) of queries, targets and, if there are any, hard negatives."""
        if self.chunk_size is None:
            sides = [[side] for side in sides]
        elif not all(isinstance(side, list) for side in sides):
            raise TypeError(
                f"with chunk_size={self.chunk_size} each side of a batch must be a list of collated chunks: "
                "use MMEBDataModule or PairDataModule, or collate as "
                "fanoise_lightning.data.batches.datasets.PairCollate does"
            )
        own = len(sides)
        if is_sharded(self.encoder):
            sides = same_calls(self.encoder, sides)
        if self.chunk_size is None:
            embedded = [self(inputs) for (inputs,) in sides]
        else:
            embedded = embed_in_chunks(self._embed_chunk, sides, list(self.encoder.parameters()))
        if len(embedded) > own:  # a side of other ranks alone: no rows here, but part of the graph
            embedded = [*embedded[: own - 1], torch.cat(embedded[own - 1 :])]
        return embedded

    def _embed_chunk(self, inputs: dict[str, Tensor]) -> Tensor:
        # here, and not with the batch: the inputs of a large batch may be larger than all else on the device
        moved = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
        return self(Padded(moved) if isinstance(inputs, Padded) else moved)

    def _log_statistics(self, sides: list[Tensor], batch: Batch) -> None:
        query, target, *hard = sides
        # all ranks log at the same steps, and can gather; somebody else's loss may know nothing of ranks
        gather = getattr(self.loss, "gather", False) is True
        accuracy = batch_accuracy(query, target, *hard, ids=_identities(batch), gather=gather)
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

    # Validation and test: the different texts and images of all subsets are embedded once, then compared

    def on_validation_epoch_start(self) -> None:
        self._start_scoring(self.trainer.val_dataloaders)

    def on_test_epoch_start(self) -> None:
        self._start_scoring(self.trainer.test_dataloaders)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(batch)

    def on_validation_epoch_end(self) -> None:
        self._end_scoring("val", self.trainer.val_dataloaders)
        self._pairs, self._since = 0, time.perf_counter()

    def on_test_epoch_end(self) -> None:
        self._end_scoring("test", self.trainer.test_dataloaders)

    def _start_scoring(self, loader: Any) -> None:
        self._table = EmbeddingTable(len(_suite(loader)), owner="the evaluation suite").to(self.device)

    def _collect(self, batch: Batch) -> None:
        assert self._table is not None
        self._table.update(self._embed_batch(batch), batch["index"])

    def _end_scoring(self, stage: str, loader: Any) -> None:
        table, self._table = self._table, None
        if self.trainer.sanity_checking or table is None:  # a few batches: no score
            return
        suite, embeddings = _suite(loader), table.compute()
        rows = []
        for data, items in zip(suite.subsets, suite.numbers, strict=True):
            result = embeddings.select(items).score(data.queries, data.candidates, data.subset.name)
            rows.append(SubsetScore.of(data.subset, result))
        self.scoreboard = Scoreboard(rows)
        self.log_dict(self.scoreboard.metrics(stage))

    # Embeddings

    @torch.inference_mode()
    def embed(self, samples: Sequence[Sample], batch_size: int = 256) -> Tensor:
        """Embed samples: the encoder in eval mode, on its device, in batches.

        Args:
            samples: n texts, images or both.
            batch_size: how many go through the encoder at once.

        Returns:
            (n, D) unit vectors, float32, on the CPU.

        Example:
            >>> vectors = module.embed([Sample("a red apple"), Sample(image=image)])   # doctest: +SKIP
            >>> vectors @ vectors.T                                                      # doctest: +SKIP
        """
        modes = {part: part.training for part in self.modules()}
        self.eval()
        try:
            parts = [torch.empty(0, self.encoder.embedding_dim)]
            most = largest(len(samples)) if is_sharded(self.encoder) else len(samples)
            for start in range(0, most, batch_size):
                some = samples[start : start + batch_size]
                parts.append(self._embed_inputs(self.collate(some) if len(some) else {}).float().cpu())
            return torch.cat(parts)
        finally:
            for part, training in modes.items():
                part.training = training

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """``{"index": (n,), "embeddings": (n, D)}``: which of the subset's samples, and their embeddings."""
        return {"index": batch["index"], "embeddings": self._embed_batch(batch)}

    def _embed_batch(self, batch: Batch) -> Tensor:
        """Unit embeddings (n, D) of a batch of items, also if every image of it was broken."""
        return self._embed_inputs(batch["inputs"] if len(batch["index"]) else {})

    def _embed_inputs(self, inputs: dict[str, Tensor]) -> Tensor:
        """Unit embeddings (n, D) of a collated batch, or of none, ``{}``; with shards called on all ranks."""
        if not is_sharded(self.encoder):
            return self._embed_chunk(inputs) if inputs else self._no_embeddings()
        (inputs,) = same_parts(self.encoder, [inputs])
        # the first pass makes the buffers of whole parameters: training cannot use those of inference mode
        with torch.inference_mode(False), torch.no_grad():
            return self._embed_chunk(inputs) if inputs else self._no_embeddings()

    def _no_embeddings(self) -> Tensor:
        return torch.empty(0, self.encoder.embedding_dim, device=self.device)


def _identities(batch: Batch) -> Identities:
    names = ("target_id", "negative_id", "query_id", "mask_pairs")
    return Identities(*(batch.get(name) for name in names))


def _suite(loader: Any) -> Any:
    dataset = getattr(loader, "dataset", None)
    if not hasattr(dataset, "numbers"):
        got = type(loader if dataset is None else dataset).__name__
        raise TypeError(
            f"ContrastiveModule evaluates one loader over all subsets (an EvalSuite), got {got}; use "
            "MMEBDataModule or PairDataModule for the evaluation loader"
        )
    return dataset
