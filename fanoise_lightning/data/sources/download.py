"""``fanoise data``: download subsets of MMEB, and check that nothing is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from fanoise_lightning._checks import check_names
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.data.rows.records import read_eval, read_train
from fanoise_lightning.data.sources.fetch import fetch
from fanoise_lightning.data.sources.hub_repository import HUB, HubRepository
from fanoise_lightning.data.sources.repository import FolderRepository
from fanoise_lightning.evaluation.mmeb import CATALOG, TRAIN_NAMES

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SubsetCheck", "as_table", "check_subset", "download", "main"]

SOURCE = "hf://datasets/TIGER-Lab"
EVAL_SPLIT = "test"
LISTED = 20  # missing images of a subset: without its archive, all of them are


@dataclass(frozen=True)
class SubsetCheck:
    """What was found of a subset.

    Args:
        repository: the folder of its repository.
        name: its config.
        rows: the number of rows.
        images: the number of different images that the rows name.
        missing: the paths of the images that are not there.
        problem: why the subset cannot be used at all; ``""`` if it can.
    """

    repository: str
    name: str
    rows: int = 0
    images: int = 0
    missing: tuple[str, ...] = ()
    problem: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing and not self.problem


def download(
    root: str | Path,
    source: str = SOURCE,
    train_subsets: Sequence[str] | None = None,
    eval_subsets: Sequence[str] | None = None,
    split: str = "original",
) -> list[SubsetCheck]:
    """Download MMEB, rows and archives of images, and check that nothing is missing.

    Files that are there are not downloaded again, and an interrupted download resumes where it stopped. If
    everything is there, the hub is not asked. The archives are read as they are, without unpacking them.

    Args:
        root: the folder to download to, into ``MMEB-train/`` and ``MMEB-eval/``; pass it to `MMEBDataModule`
            as `root`.
        source: where the repositories ``MMEB-train`` and ``MMEB-eval`` are.
        train_subsets: names of the training subsets; ``None`` for all, ``[]`` for none.
        eval_subsets: names of the evaluation subsets; ``None`` for all, ``[]`` for none.
        split: the split of the training rows, ``original`` or ``diverse_instruction``.

    Returns:
        What was found of each subset.

    Raises:
        HubError: if a download fails.
        ValueError: for an unknown subset or split.

    Example:
        >>> download("mmeb", train_subsets=["SUN397"], eval_subsets=["SUN397"])  # doctest: +SKIP
    """
    if not source.startswith(HUB):
        raise ValueError(f"`source={source}`: expected {HUB}<user>, such as {SOURCE}")
    wanted = {
        "MMEB-train": (train_configs(train_subsets), split),
        "MMEB-eval": (eval_configs(eval_subsets), EVAL_SPLIT),
    }
    checks = []
    for name, (configs, split_) in wanted.items():
        if configs:
            folder = Path(root).expanduser() / name
            repository = fetch(HubRepository(f"{source}/{name}"), configs, split_, folder)
            images = ImageRoot(folder)
            checks += [check_subset(repository, images, config, split_) for config in configs]
    return checks


def train_configs(chosen: Sequence[str] | None) -> list[str]:
    """The configs of the chosen training subsets, which go by either name; all of MMEB for ``None``."""
    if chosen is None:
        return TRAIN_NAMES
    names = [CATALOG[name].train_name or name if name in CATALOG else name for name in chosen]
    return check_names(names, TRAIN_NAMES, "training subset")


def eval_configs(chosen: Sequence[str] | None) -> list[str]:
    """The configs of the chosen evaluation subsets; all of MMEB for ``None``."""
    return list(CATALOG) if chosen is None else check_names(chosen, CATALOG, "evaluation subset")


def check_subset(repository: FolderRepository, images: ImageRoot, config: str, split: str) -> SubsetCheck:
    """Read the rows of a subset, and look for each image that they name."""
    found = SubsetCheck(repository.location, config)
    try:
        found = replace(found, rows=repository.num_rows(config, split))
        files = repository.files(config, split)
        if split == EVAL_SPLIT:
            paths = read_eval(files, CATALOG[config].subset).paths
        else:
            paths = read_train(files, config).paths
        named = pc.unique(paths).to_pylist()
        missing = tuple(path for path in named if path not in images)
    except (OSError, ValueError) as error:
        return replace(found, problem=str(error))
    return replace(found, images=len(named), missing=missing)


def as_table(checks: Sequence[SubsetCheck]) -> Table:
    """What was found, a line for each subset."""
    from rich.table import Table

    table = Table(title="MMEB")
    for column in ("repository", "subset"):
        table.add_column(column)
    for column in ("rows", "images", "missing"):
        table.add_column(column, justify="right")
    table.add_column("")
    for check in checks:
        remark = check.problem or (f"first: {check.missing[0]}" if check.missing else "whole")
        counts = [f"{count:,}" for count in (check.rows, check.images, len(check.missing))]
        table.add_row(Path(check.repository).name, check.name, *counts, remark)
    return table


def main(args: Sequence[str]) -> None:
    """``fanoise data``: `download`, print what is there, and exit with 1 if something is missing."""
    from jsonargparse import auto_cli
    from rich.console import Console

    from fanoise_lightning._user_errors import Parser

    checks = auto_cli(
        download, args=list(args), as_positional=False, prog="fanoise data", parser_class=Parser
    )
    console = Console()
    console.print(as_table(checks))
    for check in checks:
        lines = list(check.missing[:LISTED])
        if len(check.missing) > LISTED:
            lines.append(f"... and {len(check.missing) - LISTED} more")
        for line in lines:
            console.print(f"missing of {check.name}: {line}", soft_wrap=True, highlight=False)
    if not all(check.is_whole for check in checks):
        raise SystemExit(1)
