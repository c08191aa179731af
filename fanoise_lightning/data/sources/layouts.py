"""Where MMEB's rows and images lie: a folder in a layout of our own, or MMEB's two repositories, on the hub
or in a folder.
"""

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
from fanoise_lightning.data.sources.download import EVAL_SPLIT, SOURCE, eval_configs, fetch, train_configs
from fanoise_lightning.data.sources.repository import HUB, Repository
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
        """Download what is not there: of training subsets (if `fit`) the `rows` and images, of evaluation
        subsets both.
        """

    def train_names(self, chosen: Sequence[str] | None) -> list[str]:
        """The training subsets that are `chosen`, or all."""

    def eval_subsets(self, chosen: Sequence[str] | None) -> list[Subset]:
        """The evaluation subsets that are `chosen`, or all."""

    def files(self, part: Part, name: str) -> list[Path]:
        """The files of a subset's rows, in order."""

    def stream(self, name: str) -> tuple[Rows, int]:
        """The rows of a training subset one after the other, and how many there are."""

    def meta_task(self, name: str) -> str | None:
        """The meta-task of a training subset, ``None`` if it is not known."""

    def images(self, part: Part) -> ImageRoot | None:
        """The root of the images, ``None`` if there is none."""


def open_root(root: str | Path, split: str) -> Layout:
    """Tell the layout of a root by its form.

    Raises:
        ValueError: for a hub address of another form, or a `split` of a folder that has none.
    """
    if str(root).startswith("hf:"):
        if not re.fullmatch(re.escape(HUB) + "[^/]+", str(root)):
            raise ValueError(
                f"`root={root}`: expected {HUB}<user>, where MMEB-train and MMEB-eval are, such as {SOURCE}"
            )
        return RepositoryLayout(str(root), split)
    if any((Path(root) / name).is_dir() for name in ("MMEB-train", "MMEB-eval")):
        return RepositoryLayout(root, split)
    folder = Path(root)
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
                f"`{table}` lists subset `{missing[0]}`, but `{self.root / 'eval'}` lacks it; an entry of a "
                "training subset alone has no distribution"
            )
        if chosen is None and (extra := [name for name in files if name not in subsets]):
            raise ValueError(
                f"`{files[extra[0]]}` has no entry in `{table}` with a distribution: add its name, meta_task "
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
                f"`{table}`: subset `{strays[0]}` has no distribution, so it is trained on alone, but "
                f"`{self.root / 'train'}` lacks it. Add its file, or its distribution if it is evaluated on"
            )
        return read_meta_tasks(table)

    def images(self, part: Part) -> ImageRoot | None:
        return self._images

    @cached_property
    def _images(self) -> ImageRoot | None:
        # one for both parts: it keeps an index of its archive
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
    """The repositories ``MMEB-train`` and ``MMEB-eval`` under a root, whose names are in the catalog.

    Args:
        root: ``"hf://datasets/<user>"``, or the folder of both repositories' folders.
        split: of the training rows.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root, self.split = root, split
        self.sources = {
            "train": Repository(f"{root}/MMEB-train"),
            "eval": Repository(f"{root}/MMEB-eval"),
        }
        self._folders: dict[Part, Repository] = {}

    def prepare(
        self, train: Sequence[str] | None, evaluation: Sequence[str] | None, *, fit: bool, rows: bool
    ) -> None:
        if str(self.root).startswith(HUB):
            if fit:
                fetch(self.sources["train"], self._wanted("train", train), self.split, rows=rows)
            fetch(self.sources["eval"], self._wanted("eval", evaluation), EVAL_SPLIT)

    def train_names(self, chosen: Sequence[str] | None) -> list[str]:
        names = self._wanted("train", chosen)
        if not names:
            raise ValueError("there is no subset to train on: `train_subsets` is empty")
        return names

    def eval_subsets(self, chosen: Sequence[str] | None) -> list[Subset]:
        names = set(self._wanted("eval", chosen))
        return [entry.subset for name, entry in CATALOG.items() if name in names]

    def files(self, part: Part, name: str) -> list[Path]:
        repository = self._local(part)
        repository.num_rows(name, split := self._split(part))  # compares the files with the card
        return [Path(repository.url(shard)) for shard in repository.shards(name, split)]

    def stream(self, name: str) -> tuple[Rows, int]:
        source = self.sources["train"]
        return source.stream(name, self.split, TRAIN_COLUMNS), source.num_rows(name, self.split)

    def meta_task(self, name: str) -> str | None:
        entries = (entry for entry in CATALOG.values() if entry.train_name == name)
        return next((entry.meta_task for entry in entries), None)

    def images(self, part: Part) -> ImageRoot | None:
        repository, source = self._local(part), self.sources[part]
        repo_id = source.repo_id or f"{SOURCE.removeprefix(HUB)}/MMEB-{part}"
        where = f" --local-dir {source.folder}" if source.folder is not None else ""
        return ImageRoot(
            str(repository.folder), f"hf download {repo_id} {{archive}} --repo-type dataset{where}"
        )

    def _split(self, part: Part) -> str:
        return self.split if part == "train" else EVAL_SPLIT

    def _local(self, part: Part) -> Repository:
        """The repository's folder: its own, or that in the hub's cache."""
        if part not in self._folders:
            if (folder := self.sources[part].cached()) is None:
                raise FileNotFoundError(
                    f"{self.sources[part]} was not downloaded yet: call `prepare_data()` before `setup()`"
                )
            self._folders[part] = folder
        return self._folders[part]

    def _wanted(self, part: Part, chosen: Sequence[str] | None) -> list[str]:
        """The configs that are chosen, or all of MMEB's; training subsets go by either name."""
        names = train_configs(chosen) if part == "train" else eval_configs(chosen)
        source, split = self.sources[part], self._split(part)
        if chosen is not None or source.folder is None:  # the hub has all, or says itself what it lacks
            return names
        available = source.available(split)
        there = [name for name in names if name in available]
        if missing := [name for name in names if name not in there]:
            what = "training subsets" if part == "train" else "evaluation subsets"
            raise FileNotFoundError(
                f"{source} lacks {len(missing)} of MMEB's {len(names)} {what} (split `{split}`). Fetch them, "
                f"`fanoise data --root {self.root} --{part}_subsets=[{','.join(missing)}]`, or take those "
                f"that are there: `{part}_subsets: [{', '.join(there)}]`"
            )
        return names
