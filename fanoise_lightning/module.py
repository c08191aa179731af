"""ContrastiveModule: an encoder, a contrastive loss and an optimiser."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from fanoise_lightning._checks import check_at_least
from fanoise_lightning._lightning import INSTANTIATOR, should_log
from fanoise_lightning.callbacks.exact_resume import ExactResume
from fanoise_lightning.callbacks.pairs_per_second import PairsPerSecond
from fanoise_lightning.distributed import reach_all
from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.encoders.remote_code import refuse_remote_code
from fanoise_lightning.evaluation.batch_accuracy import batch_accuracy
from fanoise_lightning.evaluation.retrieval_metrics import retrieval_metrics
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scorer import SuiteScorer
from fanoise_lightning.losses import InfoNCE
from fanoise_lightning.sample import Collate, Sample
from fanoise_lightning.training.checkpoints import read_arguments
from fanoise_lightning.training.describe import describe_module, warn_of_lost_arguments
from fanoise_lightning.training.embedding import embed_batch, embed_sides, warn_of_batch_norm
from fanoise_lightning.training.encode import check_device, check_truncation, encode
from fanoise_lightning.training.identities import identities, loss_options
from fanoise_lightning.training.lockstep import embed_own_rows
from fanoise_lightning.training.schedules import LinearWarmup
from fanoise_lightning.training.sharding import average_gradients, shard
from fanoise_lightning.training.trained_only import TrainedOnlyCheckpoints

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning.pytorch.utilities.types import OptimizerLRScheduler

    from fanoise_lightning.sample import ImageLike

    Encodable = Sample | str | ImageLike | dict[str, Any]

__all__ = ["ContrastiveModule"]

Batch = dict[str, Any]


class ContrastiveModule(TrainedOnlyCheckpoints):
    """Trains an encoder so that queries find their targets, and scores it by precision@1 and other metrics.

    Embeddings are normalised right before the loss. For noise, add
    :class:`~fanoise_lightning.callbacks.FANoise` to the trainer. The module brings
    :class:`~fanoise_lightning.callbacks.ExactResume`: an interrupted run can be resumed exactly.

    Logged in training: ``train/loss``, and at the trainer's log interval ``train/accuracy`` (precision@1
    among the loss's candidates, without those known to be right), ``train/logit_scale`` (1 / temperature) and
    ``train/pairs_per_second`` (over all ranks). In validation and test: ``val/precision_at_1/...`` and
    ``test/precision_at_1/...`` for each subset and mean, and likewise each of `metrics`.

    Args:
        encoder: turns samples into embeddings.
        loss: called with the unit embeddings of queries and targets, each (B, D), and of hard negatives
            (M, D) where the batch has any. By default InfoNCE at a temperature of 0.02.
        optimizer: builds the optimiser from the trainable parameters.
        lr_scheduler: builds the schedule from the optimiser; it is stepped once per optimiser step.
        chunk_size: turns on GradCache: how many pairs go through the encoder at once, or two numbers, one
            for queries and one for targets and hard negatives. The gradients are those of the whole batch, at
            the memory of one chunk and the cost of a second forward pass. Dropout draws its masks chunk by
            chunk, and batch norm sees chunks.
        save_frozen: whether checkpoints hold frozen weights that are loaded again with the encoder, from
            the model, file or tag that it names. By default they do not: a checkpoint needs that model
            anyway to build the encoder, and it refuses one whose weights have changed.
        metrics: what evaluation reports beside precision@1: ``"recall_at_k"`` and ``"ndcg_at_k"`` with a
            number for k, such as ``"recall_at_10"``; ``"mrr"``; ``"median_rank"``.

    Attributes:
        scoreboard: the scores of the latest validation or test, ``None`` before.
        pairs_seen: how many pairs this rank has trained on.

    Raises:
        ValueError: if ``chunk_size`` is not positive, or a metric is unknown.

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
        save_frozen: bool = False,
        metrics: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if chunk_size is not None and min(chunk_size if isinstance(chunk_size, tuple) else (chunk_size,)) < 1:
            raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}")
        self.encoder = encoder
        self.loss = InfoNCE() if loss is None else loss
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self.chunk_size, self.save_frozen = chunk_size, save_frozen
        self.metrics = [metric.name for metric in retrieval_metrics(metrics or ())]
        self.scoreboard: Scoreboard | None = None
        self.pairs_seen = 0
        self._pairs_when_scored = 0
        self._scorer: SuiteScorer | None = None
        # for load_from_checkpoint: the config of a CLI run, else a description in its form
        parts = {"encoder": encoder, "loss": self.loss, "optimizer": optimizer, "lr_scheduler": lr_scheduler}
        self.save_hyperparameters(ignore=[*parts])
        if INSTANTIATOR in self.hparams:
            self.save_hyperparameters()
        else:
            self.save_hyperparameters(described := describe_module(parts))
            if not described:
                warn_of_lost_arguments({"encoder": encoder, "loss": self.loss})

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        *,
        allow: str | Sequence[str] | None = (),
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> ContrastiveModule:
        """Rebuild the module from nothing but its checkpoint.

        A checkpoint is data. The encoder and the loss that it describes are built if they are this package's
        or torch's, or allowed. The same rule holds for the optimiser and the schedule, which are built only
        when the module is trained again.

        Args:
            checkpoint_path: a path, URL or open file.
            map_location: as in Lightning.
            hparams_file: a file that describes the module instead of the checkpoint, under the same rule.
            strict: as in Lightning.
            weights_only: ``False`` executes any code pickled in the file, even one from a URL.
            allow: further packages, modules or classes that the checkpoint may name, as dotted paths: one or
                several.
            trust_remote_code: ``True`` runs the Python code that comes with an encoder's model; any other
                value refuses it, even ``"true"`` or 1. The checkpoint's own setting is ignored.
            kwargs: ``encoder=...`` and other arguments that replace what the checkpoint describes.

        Raises:
            ValueError: if the checkpoint names a class that is not allowed, or no encoder, if the encoder
                needs remote code that is not trusted, or if frozen weights that the checkpoint lacks have
                changed.
        """
        arguments = read_arguments(cls, checkpoint_path, hparams_file, weights_only, kwargs, allow)
        if "encoder" not in arguments and cls.__init__ is ContrastiveModule.__init__:
            raise ValueError(
                f"the checkpoint {checkpoint_path} does not describe its encoder: pass `encoder=`"
            )
        safe = weights_only is not False
        # not truthiness: "false", from a config or the environment, must not run code
        with nullcontext() if trust_remote_code is True else refuse_remote_code():
            return super().load_from_checkpoint(
                checkpoint_path, map_location, None, strict, safe, **arguments
            )

    @property
    def scoreboard_is_current(self) -> bool:
        """Whether there is a scoreboard, and nothing was trained since."""
        return self.scoreboard is not None and self._pairs_when_scored == self.pairs_seen

    @property
    def collate(self) -> Collate:
        """Turns samples into the encoder's arguments; data modules run it in their workers."""
        return self.encoder.collate

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Unit embeddings (B, D), float32 or the encoder's float64, of a collated batch on any device."""
        features = embed_own_rows(self.encoder, inputs, self.device)
        # 16 bits would leave lengths 0.3 % off, and scores with them
        return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)

    # Training

    def configure_callbacks(self) -> list[Callback]:
        """Exact resumption and the speed of training, unless the trainer has its own."""
        theirs = self.trainer.callbacks  # type: ignore[attr-defined]
        ours = (ExactResume, PairsPerSecond)
        return [kind() for kind in ours if not any(isinstance(callback, kind) for callback in theirs)]

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # with ModelParallelStrategy
            shard(self.encoder, self.device_mesh)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.device_mesh is not None:
            average_gradients(self.parameters())

    def on_fit_start(self) -> None:
        # Pretrained encoders come in eval mode, and Lightning keeps it: dropout would silently stay off.
        self.train()
        if self.chunk_size is not None:
            warn_of_batch_norm(self.encoder, self.chunk_size)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        sides = [batch[side] for side in ("query", "target", "negatives") if side in batch]
        sides = embed_sides(self, self.encoder, sides, self.chunk_size)
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            sides = reach_all(sides, [p for p in self.encoder.parameters() if p.requires_grad])
        query, target, *negatives = sides
        loss = self.loss(query, target, *negatives, **loss_options(self.loss, batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(query))
        self.pairs_seen += len(query)
        if should_log(self.trainer):
            self._log_statistics([query, target, *negatives], batch)
        return loss

    def _log_statistics(self, sides: list[Tensor], batch: Batch) -> None:
        query, target, *hard = sides
        # all ranks log at the same steps, and can gather; a user's loss may know nothing about ranks
        gather = getattr(self.loss, "gather", False) is True
        accuracy = batch_accuracy(query, target, *hard, ids=identities(batch), gather=gather)
        self.log("train/accuracy", accuracy, prog_bar=True, batch_size=len(query))
        scale = getattr(self.loss, "scale", None)
        if scale is not None:
            self.log("train/logit_scale", scale, batch_size=len(query))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        if self._lr_scheduler is None:
            return optimizer
        scheduler = self._lr_scheduler(optimizer)
        if isinstance(scheduler, LinearWarmup) and scheduler.total_steps is None:
            scheduler.total_steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Validation and test: the distinct texts and images of all subsets are embedded once, then compared

    def on_validation_epoch_start(self) -> None:
        self._scorer = SuiteScorer.of(self.trainer.val_dataloaders, self.device, self.metrics)

    def on_test_epoch_start(self) -> None:
        self._scorer = SuiteScorer.of(self.trainer.test_dataloaders, self.device, self.metrics)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert self._scorer is not None
        self._scorer.update(self._embed_batch(batch), batch["index"])

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._end_scoring("val")

    def on_test_epoch_end(self) -> None:
        self._end_scoring("test")

    def _end_scoring(self, stage: str) -> None:
        scorer, self._scorer = self._scorer, None  # the embeddings are freed
        if self.trainer.sanity_checking or scorer is None:  # a few batches have no score
            return
        self.scoreboard, self._pairs_when_scored = scorer.compute(), self.pairs_seen
        self.log_dict(self.scoreboard.metrics(stage))

    # Embeddings

    @torch.inference_mode()
    def encode(
        self,
        samples: Encodable | Iterable[Encodable],
        batch_size: int = 256,
        *,
        show_progress_bar: bool = False,
        num_workers: int = 0,
        convert_to_numpy: bool = False,
        normalize: bool = True,
        truncate_dim: int | None = None,
        device: str | torch.device | Sequence[str | torch.device] | None = None,
    ) -> Any:
        """Embed texts and images: the encoder in eval mode, in batches, long texts together.

        Args:
            samples: one sample, or n in order. A string is a text, never the path of a file; an image is a
                Pillow image, an array or a :class:`pathlib.Path`. Text and image together are a
                :class:`~fanoise_lightning.Sample` or ``{"text": ..., "image": ...}``.
            batch_size: how many go through the encoder at once.
            show_progress_bar: count the samples that are done.
            num_workers: processes that open images and tokenise, for each device; 0 does it in between.
            convert_to_numpy: return an array instead of a tensor.
            normalize: return unit vectors; otherwise, what the encoder returns.
            truncate_dim: keep the first dimensions alone, for encoders that were trained so that these
                suffice; ``None`` for all D. Unit vectors are of unit length afterwards.
            device: where to embed; by default where the module is. One device moves the module there;
                several, such as ``["cuda:0", "cuda:1"]`` or ``["cpu", "cpu"]``, start a process with a copy
                of the encoder for each. A script then needs ``if __name__ == "__main__":``.

        Returns:
            (n, D) float32, on the CPU; (D,) for one sample. A tensor, or an array if asked for.

        Raises:
            TypeError: for what is neither a sample nor a sequence of some.
            ValueError: if ``batch_size`` or ``truncate_dim`` is below 1, ``truncate_dim`` is above D, a
                device is not available, or an item is empty or cannot be decoded.
            FileNotFoundError: if a path does not exist. An error of an item names its index.

        Example:
            >>> vectors = module.encode(["a red apple", image, Sample("red", image)])    # doctest: +SKIP
            >>> vectors @ module.encode("an apple")                                      # doctest: +SKIP
        """
        check_at_least("batch_size", batch_size, 1)
        check_at_least("num_workers", num_workers, 0)
        check_truncation(truncate_dim, self.encoder.embedding_dim)
        if isinstance(device, str | torch.device):
            check_device(device)
            self.to(device)
            device = None
        where = self.device if device is None else device
        found = encode(self.encoder, samples, where, batch_size, num_workers, show_progress_bar)
        found = found[..., :truncate_dim].contiguous()
        if normalize:
            F.normalize(found, dim=-1, out=found)
        return found.numpy() if convert_to_numpy else found

    def embed(self, samples: Iterable[Sample], batch_size: int = 256) -> Tensor:
        """The former name of :meth:`encode`."""
        warnings.warn("`embed` is now called `encode`", FutureWarning, stacklevel=2)
        return self.encode(samples, batch_size)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """``{"index": (n,), "embeddings": (n, D)}``: which of the subset's samples, and their embeddings."""
        return {"index": batch["index"], "embeddings": self._embed_batch(batch)}

    def _embed_batch(self, batch: Batch) -> Tensor:
        """Unit embeddings (n, D) of a batch of items; n = 0 if every image was broken."""
        inputs = batch["inputs"] if len(batch["index"]) else {}
        return embed_batch(self, self.encoder, inputs, self.device)
