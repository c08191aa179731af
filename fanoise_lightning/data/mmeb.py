"""MMEB, and everything in its layout: a folder with rows and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fanoise_lightning.data.datamodule import ContrastiveDataModule
from fanoise_lightning.data.images import ImageRoot
from fanoise_lightning.data.mixing import BatchSubsets, Sampling
from fanoise_lightning.data.records import EvalRows, TrainRows, read_eval, read_train
from fanoise_lightning.data.subsets import check_names, read_subsets
from fanoise_lightning.data.tables import find_subsets
from fanoise_lightning.sample import Collate

__all__ = ["MMEBDataModule"]


class MMEBDataModule(ContrastiveDataModule):
    """Training pairs mixed over subsets, and one evaluation pass per subset, from a local folder.

    The folder holds ``subsets.json`` (name, meta-task and distribution of the evaluation subsets),
    ``train/<subset>.parquet`` and ``eval/<subset>.parquet`` (or ``.jsonl``, or a folder of parquet shards)
    with MMEB's columns, and the pictures in ``images/`` or ``images.zip``.

    A picture that cannot be read is skipped, counted and reported: in training the next row of its subset
    takes its place, in evaluation the side is left out.

    Args:
        root: the folder, or ``"emoji"`` for the embedded benchmark.
        batch_size: training pairs per process and step.
        eval_batch_size: sides per process and evaluation step.
        train_subsets: names of the subsets to train on; ``None`` for all.
        eval_subsets: names of the subsets to evaluate on; ``None`` for all.
        num_samples: take the first `num_samples` rows of each training subset.
        sampling: share of the subsets in an epoch: ``"proportional"`` to their sizes, ``"uniform"``, or a
            weight for each (0 leaves it out).
        batch_subsets: batches ``"mixed"`` over subsets, or of a ``"single"`` one.
        blind: drop the query pictures in training and evaluation: what can be solved without looking.
        num_workers: processes that decode and tokenise, per loader.
        seed: of the order.
        max_skipped: share of the training rows, or of the evaluation sides, whose pictures may be unreadable
            before the run stops.
        collate: turns samples into tensors; by default that of the module that is trained.

    Raises:
        FileNotFoundError: if the folder or a file is missing (in `setup`).
        ValueError: for an unknown subset, wrong columns or rows, or an empty subset (in `setup`); for fewer
            rows than a global batch has (in `train_dataloader`).

    Example:
        >>> data = MMEBDataModule("mmeb/", batch_size=256, sampling="uniform")  # doctest: +SKIP
        >>> trainer.fit(module, datamodule=data)  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | Path = "emoji",
        batch_size: int = 128,
        eval_batch_size: int = 256,
        train_subsets: Sequence[str] | None = None,
        eval_subsets: Sequence[str] | None = None,
        num_samples: int | None = None,
        sampling: Sampling = "proportional",
        batch_subsets: BatchSubsets = "mixed",
        blind: bool = False,
        num_workers: int = 2,
        seed: int = 42,
        max_skipped: float = 0.01,
        collate: Collate | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            sampling=sampling,
            batch_subsets=batch_subsets,
            num_workers=num_workers,
            seed=seed,
            max_skipped=max_skipped,
            collate=collate,
        )
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, got {num_samples}")
        self.root = Path(__file__).with_name("emoji") if root == "emoji" else Path(root)
        self.train_subsets, self.eval_subsets = train_subsets, eval_subsets
        self.num_samples, self.blind = num_samples, blind

    def read_train(self) -> list[TrainRows]:
        """Read the training rows of the chosen subsets."""
        files = self._files("train")
        names = check_names(
            files if self.train_subsets is None else self.train_subsets, files, "training subset"
        )
        if not names:
            raise ValueError(f"there is no subset to train on in `{self.root / 'train'}`")
        return [read_train(files[name], name, limit=self.num_samples, blind=self.blind) for name in names]

    def read_eval(self) -> list[EvalRows]:
        """Read the evaluation rows of the chosen subsets, in the order of ``subsets.json``."""
        table = self.root / "subsets.json"
        subsets, files = read_subsets(table), self._files("eval")
        chosen = list(subsets) if self.eval_subsets is None else self.eval_subsets
        names = set(check_names(chosen, subsets, "evaluation subset"))
        if missing := [name for name in subsets if name in names and name not in files]:
            raise FileNotFoundError(
                f"`{table}` lists subset `{missing[0]}`, but `{self.root / 'eval'}` lacks it"
            )
        if self.eval_subsets is None and (extra := [name for name in files if name not in subsets]):
            raise ValueError(
                f"`{files[extra[0]]}` has no entry in `{table}`: add its name, meta_task and distribution"
            )
        return [
            read_eval(files[name], subset, blind=self.blind)
            for name, subset in subsets.items()
            if name in names
        ]

    def images(self) -> ImageRoot | None:
        """``images/`` or ``images.zip`` of the root."""
        for name in ("images", "images.zip"):
            if (self.root / name).exists():
                return ImageRoot(self.root / name)
        return None

    def _files(self, part: str) -> dict[str, Path]:
        folder = self.root / part
        if not folder.is_dir():
            raise FileNotFoundError(
                f"`{folder}` does not exist: `root` must hold train/, eval/ and subsets.json"
            )
        return find_subsets(folder)

    def _source(self) -> str:
        return f"`{self.root}` (expected images/ or images.zip in it)"
