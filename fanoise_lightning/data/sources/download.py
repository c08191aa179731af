"""Download what MMEB's repositories hold of some subsets, and check that it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fanoise_lightning._checks import check_names
from fanoise_lightning.data.images.roots import ImageRoot, archive_names, first_paths
from fanoise_lightning.data.rows.records import read_eval, read_train
from fanoise_lightning.data.sources.repository import CARD, HUB, Repository
from fanoise_lightning.evaluation.mmeb import CATALOG, TRAIN_NAMES

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SubsetCheck", "as_table", "check_subset", "download", "fetch", "main"]

SOURCE = "hf://datasets/TIGER-Lab"
EVAL_SPLIT = "test"
LISTED = 20  # of the missing images of a subset: without its archive all are missing


@dataclass(frozen=True)
class SubsetCheck:
    """What was found of a subset.

    Args:
        repository: its folder.
        name: its config.
        rows: how many rows it has.
        images: how many different images they name.
        missing: the paths of those that are not there.
        problem: why it cannot be used at all; ``""`` if it can.
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
    """Download MMEB, rows and archives of images, and check that it is whole.

    What is there is not downloaded again, and a broken download goes on where it broke; if everything is
    there, the hub is not asked. The archives are not unpacked, they are read as they are.

    Args:
        root: the folder to download to: ``MMEB-train/`` and ``MMEB-eval/`` in it; afterwards the `root` of
            `MMEBDataModule`.
        source: where the repositories ``MMEB-train`` and ``MMEB-eval`` are.
        train_subsets: names of the training subsets; ``None`` for all, ``[]`` for none.
        eval_subsets: names of the evaluation subsets; ``None`` for all, ``[]`` for none.
        split: of the training rows: ``original`` or ``diverse_instruction``.

    Returns:
        What was found of each subset.

    Raises:
        HubError: if a download fails again and again.
        ValueError: if there is no such subset or split.

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
            folder = Path(root) / name
            repository = fetch(Repository(f"{source}/{name}"), configs, split_, folder=folder)
            images = ImageRoot(folder)
            checks += [check_subset(repository, images, config, split_) for config in configs]
    return checks


def train_configs(chosen: Sequence[str] | None) -> list[str]:
    """The training configs of MMEB that are chosen, by either name, or all."""
    if chosen is None:
        return TRAIN_NAMES
    names = [CATALOG[name].train_name or name if name in CATALOG else name for name in chosen]
    return check_names(names, TRAIN_NAMES, "training subset")


def eval_configs(chosen: Sequence[str] | None) -> list[str]:
    """The evaluation configs of MMEB that are chosen, or all."""
    return list(CATALOG) if chosen is None else check_names(chosen, CATALOG, "evaluation subset")


def check_subset(repository: Repository, images: ImageRoot, config: str, split: str) -> SubsetCheck:
    """Read the rows of a subset in a folder, and look for each image that they name."""
    found = SubsetCheck(repository.location, config)
    try:
        found = replace(found, rows=repository.num_rows(config, split))
        files = [Path(repository.url(shard)) for shard in repository.shards(config, split)]
        if split == EVAL_SPLIT:
            paths = read_eval(files, CATALOG[config].subset).paths
        else:
            paths = read_train(files, config).paths
        paths = pc.unique(paths).to_pylist()
        missing = tuple(path for path in paths if path not in images)
    except (OSError, ValueError) as error:
        return replace(found, problem=str(error))
    return replace(found, images=len(paths), missing=missing)


def as_table(checks: Sequence[SubsetCheck]) -> Table:
    """What was found, one line a subset."""
    from rich.table import Table

    table = Table(title="MMEB")
    for column in ("repository", "subset", "rows", "images", "missing"):
        table.add_column(column, justify="left" if column in ("repository", "subset") else "right")
    table.add_column("")
    for check in checks:
        remark = check.problem or "".join(f"first: {path}" for path in check.missing[:1]) or "whole"
        counts = (f"{number:,}" for number in (check.rows, check.images, len(check.missing)))
        table.add_row(Path(check.repository).name, check.name, *counts, remark)
    return table


def main(args: Sequence[str]) -> None:
    """``fanoise data``: `download`, a table of what is there, and exit code 1 if something is missing."""
    from jsonargparse import auto_cli
    from rich.console import Console

    try:
        checks = auto_cli(download, args=list(args), as_positional=False, prog="fanoise data")
    except (OSError, ValueError) as error:
        raise SystemExit(f"fanoise data: {error}") from None
    console = Console()
    console.print(as_table(checks))
    for check in checks:
        lines = [*check.missing[:LISTED], f"... and {len(check.missing) - LISTED} more"]
        for line in lines[: len(check.missing)]:
            console.print(f"missing of {check.name}: {line}", soft_wrap=True, highlight=False)
    if not all(check.is_whole for check in checks):
        raise SystemExit(1)


def fetch(
    source: Repository,
    configs: Sequence[str],
    split: str,
    *,
    rows: bool = True,
    folder: str | Path | None = None,
) -> Repository:
    """Download the rows of some configs and the archives of their images; what is there is not asked for.

    Args:
        source: a repository on the hub.
        configs: the configs.
        split: the split.
        rows: whether to download the rows: with a stream only the archives named after the configs.
        folder: where to; by default the hub's cache.

    Returns:
        The folder as a repository.

    Raises:
        HubError: if a download fails.
        ValueError: if there is no such config or split.
    """
    local = Repository(folder) if folder is not None else source.cached()
    if not rows:
        archives = [archive_names(f"{config}/")[0] for config in configs]
        archives = [name for name in archives if local is None or not local.find(name)]
        return source.download([CARD, *(name for name in archives if source.find(name))], folder)
    if local is None or not set(configs) <= set(local.available(split)):
        shards = [shard for config in configs for shard in source.shards(config, split)]
        local = source.download([CARD, *shards], folder)
    archives = sorted(
        {name for config in configs for name in _missing_archives(source, local, config, split)}
    )
    return source.download(archives, folder) if archives else local


def _missing_archives(source: Repository, local: Repository, config: str, split: str) -> list[str]:
    """The archives that the images of a config need, and that are not there."""
    missing = []
    for group, path in first_paths(image_paths(local, config, split)).items():
        names = archive_names(path)
        unpacked = local.folder is not None and (local.folder / "images" / group).is_dir()
        if not unpacked and not any(local.find(name) for name in names):
            # paths of an archive that the repository does not have are told of when images are opened
            missing += [name for name in names if source.find(name)][:1]
    return missing


def image_paths(repository: Repository, config: str, split: str) -> pa.Array:
    """The different image paths in the rows of a split, in a repository's folder."""
    found = [pa.array([], pa.string())]
    for shard in repository.shards(config, split):
        file = pq.ParquetFile(repository.url(shard))
        columns = [name for name in file.schema_arrow.names if name.endswith("_path")]
        for column in file.read(columns=columns).columns:
            values = column.combine_chunks()
            if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
                values = pc.list_flatten(values)
            if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
                found.append(values.cast(pa.string()))
    paths = pc.unique(pa.concat_arrays(found).drop_null())
    return paths.filter(pc.not_equal(paths, ""))
