"""Writes the embeddings of a prediction run, one file per subset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fanoise_lightning.callbacks._files import output_folder, whole_file


class EmbeddingWriter(BasePredictionWriter):
    """Write the embeddings of each subset to ``{subset}.safetensors`` in ``fanoise predict``.

    A file holds ``index`` (n,), the ascending numbers of the items (texts and images) in the subset's
    evaluation data, and ``embeddings`` (n, D). Broken images have no row. With several processes, each writes
    what it embedded to ``{subset}.rank{r}.safetensors``. A subset is held in memory until it is written; call
    ``trainer.predict`` with ``return_predictions=False``, or the trainer keeps all subsets.

    ``predict_step`` must return ``{"index": (n,), "embeddings": (n, D)}``, and each data set must have a
    ``subset.name``.

    Args:
        path: the folder to write to; by default the logger's, or else the trainer's ``default_root_dir``.

    Raises:
        ValueError: at the start of the prediction, if a data set has no ``subset.name``, if two share one, or
            if a name would lead out of the folder.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[EmbeddingWriter("embeddings")], logger=False)
    """

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path
        self._files: list[Path] = []
        self._batches: list[dict[str, Tensor]] = []
        self._current = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = trainer.predict_dataloaders
        loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
        names = [_file_name(loader.dataset, number) for number, loader in enumerate(loaders)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"the subsets {repeated} appear more than once: one file would overwrite the other"
            )
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        folder = output_folder(trainer, self.path)
        self._files = [folder / f"{name}{rank}.safetensors" for name in names]
        self._batches, self._current = [], 0

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if dataloader_idx != self._current:
            self._write()
            self._current = dataloader_idx
        if prediction is not None and len(prediction["index"]):
            self._batches.append({key: prediction[key].detach().cpu() for key in ("index", "embeddings")})

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write()

    def _write(self) -> None:
        """Write what has been collected for the current subset."""
        from safetensors.torch import save_file

        file = self._files[self._current]
        if not self._batches:
            rank_zero_warn(f"there is nothing to write to {file.name}: no text or image was embedded")
            return
        index = torch.cat([batch["index"] for batch in self._batches])
        embeddings = torch.cat([batch["embeddings"] for batch in self._batches])
        self._batches = []
        order = index.argsort()
        with whole_file(file) as unfinished:
            save_file({"index": index[order], "embeddings": embeddings[order]}, unfinished)


def _file_name(dataset: Any, number: int) -> str:
    """The subset's name, if it is safe as a file name: names come from downloaded files."""
    name = getattr(getattr(dataset, "subset", None), "name", None)
    if not isinstance(name, str):
        raise ValueError(
            f"EmbeddingWriter names its files after `dataset.subset.name`, which the "
            f"{type(dataset).__name__} of predict dataloader {number} does not have"
        )
    if name in ("", ".", "..") or any(character in name for character in "/\\:\0"):
        raise ValueError(
            f"the subset name {name!r} cannot name a file in the output folder: give it a name without "
            "slashes, backslashes and colons"
        )
    return name
