"""The layouts of a root: a folder in our own layout, or MMEB's two repositories, on the hub or in folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from fanoise_lightning._checks import check_names
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.rows.records import TRAIN_COLUMNS
from fanoise_lightning.data.rows.shards import FileRows, Rows
from fanoise_lightning.data.rows.tables import SHARDS, find_subsets
from fanoise_lightning.data.sources.download import EVAL_SPLIT, SOURCE, eval_configs, train_configs
from fanoise_lightning.data.sources.fetch import fetch, fetch_archives
from fanoise_lightning.data.sources.hub_repository import HUB, HubRepository, open_repository
from fanoise_lightning.data.sources.repository import FolderRepository
from fanoise_lightning.data.sources.subsets_json import read_meta_tasks, read_subsets
from fanoise_lightning.evaluation.mmeb import CATALOG
from fanoise_lightning.subset import Subset

__all__ = ["FolderLayout", "Layout", "Part", "RepositoryLayout", "open_root"]

Part = Literal["train", "eval"]


class Layout(Protocol):
    """What the data module asks of a root."""

    def prepare(
        self, train: Sequence[str] | None, evaluation: Sequence[str] | None, *, fit: bool, rows: bool
    ) -> None:
        """Download what is missing.

        Args:
            train: the training subsets, ``None`` for all.
            evaluation: the evaluation subsets, ``None`` for all.
            fit: whether the run trains; without, nothing of the training subsets is downloaded.
            rows: whether to download the rows of the training subsets, or their images only.
        """

    def train_names(self, chosen: Sequence[str] | None) -> list[str]:
        """The names of the chosen training subsets, ``None`` for all."""

    def eval_subsets(self, chosen: Sequence[str] | None) -> list[Subset]:
        """The chosen evaluation subsets, ``None`` for all, in the order of the scoreboard."""

    def files(self, part: Part, name: str) -> list[Path]:
        """The files with the rows of a subset, in order."""

    def stream(self, name: str) -> tuple[Rows, int]:
        """The rows of a training subset, to be read shard by shard, and their number."""

    def meta_task(self, name: str) -> str | None:
        """The meta-task of a training subset, ``None`` if unknown."""

    def images(self, part: Part) -> ImageRoot | None:
        """Where the images are, ``None`` if there are none."""


def open_root(root: str | Path, split: str) -> Layout:
    """Recognise the layout of a root.

    Args:
        root: see `MMEBDataModule`.
        split: the split of the training rows.

    Raises:
        ValueError: for a malformed hub address, or a `split` of a folder that has no splits.
    """
    if str(root).startswith("hf:"):
        if not re.fullmatch(re.escape(HUB) + "[^/]+", str(root)):
            raise ValueError(
                f"`root={root}`: expected {HUB}<user>, where MMEB-train and MMEB-eval are, such as {SOURCE}"
            )
        return RepositoryLayout(str(root), split)
    folder = Path(root)
    if any((folder / name).is_dir() for name in ("MMEB-train", "MMEB-eval")):
        return RepositoryLayout(folder, split)
    if split != "original":
        raise ValueError(f"`split={split}`: `{folder}` has no splits, only MMEB's repositories have")
    return FolderLayout(folder)


class FolderLayout:
    """``subsets.json``, ``train/``, ``eval/``, and ``images/`` or ``images.zip``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(
        self, train: Sequence[str] | None, evaluation: Sequence[str] | None, *, fit: bool, rows: bool
    ) -> None:
        """Nothing to download."""

    def train_names(self, chosen: Sequence[str] | None) -> list[str]:
        known = self._files("train")
        names = check_names(known if chosen is None else chosen, known, "training subset")
        if not names:
            raise ValueError(f"there is no subset to train on in `{self.root / 'train'}`")
        return names

    def eval_subsets(self, chosen: Sequence[str] | None) -> list[Subset]:
        table = self.root / "subsets.json"
        subsets, files = read_subsets(table), self._files("eval")
        names = set(check_names(subsets if chosen is None else chosen, subsets, "evaluation subset"))
        if missing := [name for name in subsets if name in names and name not in files]:
            raise FileNotFoundError(
                f"`{table}` lists subset `{missing[0]}`, but `{self.root / 'eval'}` lacks it; if it is only "
                "trained on, remove the distribution from its entry"
            )
        if chosen is None and (extra := [name for name in files if name not in subsets]):
            raise ValueError(
                f"`{files[extra[0]]}` has no entry with a distribution in `{table}`: add its name, meta_task "
                "and distribution"
            )
        return [subset for name, subset in subsets.items() if name in names]

    def files(self, part: Part, name: str) -> list[Path]:
        path = self._files(part)[name]
        return sorted(path.glob(SHARDS)) if path.is_dir() else [path]

    def stream(self, name: str) -> tuple[Rows, int]:
        rows = FileRows(self.files("train", name), TRAIN_COLUMNS)
        return rows, rows.num_rows

    def meta_task(self, name: str) -> str | None:
        return self._meta_tasks.get(name)

    @cached_property
    def _meta_tasks(self) -> dict[str, str]:
        table = self.root / "subsets.json"
        if not table.is_file():
            return {}
        known = self._files("train")
        if strays := [name for name in read_meta_tasks(table, trained=True) if name not in known]:
            raise ValueError(
                f"`{table}`: subset `{strays[0]}` has no distribution, so it is only trained on, but "
                f"`{self.root / 'train'}` lacks it. Add its file, or its distribution if it is evaluated on"
            )
        return read_meta_tasks(table)

    def images(self, part: Part) -> ImageRoot | None:
        return self._images

    @cached_property
    def _images(self) -> ImageRoot | None:
        # the same for both parts, because it keeps an index of the archive
        names = [name for name in ("images", "images.zip") if (self.root / name).exists()]
        return ImageRoot(self.root / names[0]) if names else None

    def _files(self, part: Part) -> dict[str, Path]:
        folder = self.root / part
        if not folder.is_dir():
            raise FileNotFoundError(
                f"`{folder}` does not exist: `root` must hold train/, eval/ and subsets.json, or MMEB-train/ "
                "and MMEB-eval/ as they are on the hub"
            )
        return find_subsets(folder)


class RepositoryLayout:
    """The repositories ``MMEB-train`` and ``MMEB-eval``, whose subsets are those of the catalog.

    Args:
        root: ``"hf://datasets/<user>"``, or the folder with the folders of both repositories.
        split: the split of the training rows.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = root, split
        self.sources = {
            "train": open_repository(f"{root}/MMEB-train"),
            "eval": open_repository(f"{root}/MMEB-eval"),
        }
        self._folders: dict[Part, FolderRepository] = {}

    def prepare(
        self, train: Sequence[str] | None, evaluation: Sequence[str] | None, *, fit: bool, rows: bool
    ) -> None:
        source = self.sources["train"]
        if fit and isinstance(source, HubRepository):
            names = self._names("train", train)
            if rows:
                fetch(source, names, self.split)
            else:
                fetch_archives(source, names)
        source = self.sources["eval"]
        if isinstance(source, HubRepository):
            fetch(source, self._names("eval", evaluation), EVAL_SPLIT)

    def train_names(self, chosen: Sequence[str] | None) -> list[str]:
        names = self._names("train", chosen)
        if not names:
            raise ValueError("there is no subset to train on: `train_subsets` is empty")
        return names

    def eval_subsets(self, chosen: Sequence[str] | None) -> list[Subset]:
        names = set(self._names("eval", chosen))
        return [entry.subset for name, entry in CATALOG.items() if name in names]

    def files(self, part: Part, name: str) -> list[Path]:
        repository, split = self._local(part), self._split(part)
        repository.num_rows(name, split)  # compares the rows with the card
        return repository.files(name, split)

    def stream(self, name: str) -> tuple[Rows, int]:
        rows = self.sources["train"].stream(name, self.split, TRAIN_COLUMNS)
        return rows, rows.num_rows

    def meta_task(self, name: str) -> str | None:
        entries = (entry for entry in CATALOG.values() if entry.train_name == name)
        return next((entry.meta_task for entry in entries), None)

    def images(self, part: Part) -> ImageRoot | None:
        source = self.sources[part]
        if isinstance(source, HubRepository):
            repo_id, local_dir = source.repo_id, ""
        else:
            repo_id, local_dir = f"{SOURCE.removeprefix(HUB)}/MMEB-{part}", f" --local-dir {source.folder}"
        command = f"hf download {repo_id} {{archive}} --repo-type dataset{local_dir}"
        return ImageRoot(self._local(part).folder, command)

    def _split(self, part: Part) -> str:
        return self.split if part == "train" else EVAL_SPLIT

    def _local(self, part: Part) -> FolderRepository:
        """The repository's folder: its own, or the one in the hub's cache."""
        if part not in self._folders:
            source = self.sources[part]
            folder = source.cached() if isinstance(source, HubRepository) else source
            if folder is None:
                raise FileNotFoundError(
                    f"{source} has not been downloaded: call `prepare_data()` before `setup()`"
                )
            self._folders[part] = folder
        return self._folders[part]

    def _names(self, part: Part, chosen: Sequence[str] | None) -> list[str]:
        """The configs of the chosen subsets, or of all; for a folder that lacks some they must be chosen."""
        names = train_configs(chosen) if part == "train" else eval_configs(chosen)
        source, split = self.sources[part], self._split(part)
        if chosen is not None or isinstance(source, HubRepository):
            return names
        present = [name for name in names if source.is_whole(name, split)]
        missing = [name for name in names if name not in present]
        if missing:
            kind = "training" if part == "train" else "evaluation"
            raise FileNotFoundError(
                f"{source} lacks {len(missing)} of MMEB's {len(names)} {kind} subsets (split `{split}`). "
                f"Fetch them, `fanoise data --root {self.root} --{part}_subsets=[{','.join(missing)}]`, or "
                f"choose those that are there: `{part}_subsets: [{', '.join(present)}]`"
            )
        return names
