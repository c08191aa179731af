"""Download what some subsets need of a repository on the hub: make a plan, then carry it out.

It takes two steps, because only the rows name the archives of images they need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from fanoise_lightning.data.images.roots import archive_names, first_paths
from fanoise_lightning.data.rows.columns import Columns
from fanoise_lightning.data.rows.records import EVAL_COLUMNS, TRAIN_COLUMNS
from fanoise_lightning.data.rows.references import unique_paths
from fanoise_lightning.data.rows.tables import read_table
from fanoise_lightning.data.sources.hub_repository import HubRepository
from fanoise_lightning.data.sources.repository import CARD, FolderRepository, Repository

__all__ = ["Plan", "fetch", "fetch_archives", "plan_archives", "plan_rows"]

# all optional: training rows do not have the columns of evaluation rows, nor the other way round
_PATHS: Columns = {
    name: "optional images" for name, kind in {**TRAIN_COLUMNS, **EVAL_COLUMNS}.items() if "image" in kind
}


@dataclass(frozen=True)
class Plan:
    """The files of a repository that some subsets need, relative to it.

    Args:
        present: those that are on this machine.
        missing: those that are not.
    """

    present: tuple[str, ...]
    missing: tuple[str, ...]

    def carry_out(
        self, source: HubRepository, local: FolderRepository | None, folder: str | Path | None
    ) -> FolderRepository:
        """Download the missing files into `folder` or the hub's cache; without any, the hub is not asked."""
        if local is not None and not self.missing:
            return local
        # In the cache each commit has its own folder, and all files must be in the same one. What has not
        # changed since the commit before is not downloaded again.
        return source.download(self.missing if folder is not None else self.present + self.missing, folder)


def fetch(
    source: HubRepository, configs: Sequence[str], split: str, folder: str | Path | None = None
) -> FolderRepository:
    """Download the rows of some configs and the archives of their images, unless they are there already.

    Args:
        source: the repository to download from.
        configs: the configs of the subsets.
        split: the split of their rows.
        folder: where to put the files; by default the hub's cache.

    Returns:
        The folder as a repository.

    Raises:
        HubError: if a download fails.
        ValueError: for an unknown config or split.
    """
    local = source.cached() if folder is None else FolderRepository(folder)
    rows = plan_rows(source, local, configs, split)
    local = rows.carry_out(source, local, folder)

    groups: dict[str, str] = {}
    for config in configs:
        groups |= image_groups(local, config, split)
    archives = plan_archives(source, local, groups, rows)
    return archives.carry_out(source, local, folder)


def fetch_archives(source: HubRepository, configs: Sequence[str]) -> FolderRepository:
    """Download only the archives named after some configs, into the hub's cache: their rows are streamed."""
    card = Plan(present=(), missing=(CARD,))
    local = card.carry_out(source, None, None)
    groups = {config: f"images/{config}/" for config in configs}
    return plan_archives(source, local, groups, card).carry_out(source, local, None)


def plan_rows(source: Repository, local: FolderRepository | None, configs: Sequence[str], split: str) -> Plan:
    """Plan which files of rows to download, and with them the card, which lists the number of rows.

    Args:
        source: the repository to download from; asked only if rows are missing.
        local: what is there.
        configs: the configs of the subsets.
        split: the split of their rows.
    """
    missing = [config for config in configs if local is None or not local.is_whole(config, split)]
    if local is not None and not missing:
        return Plan((CARD, *(file for config in configs for file in local.shards(config, split))), ())
    files = {config: source.shards(config, split) for config in configs}
    return Plan(
        present=tuple(file for config in configs if config not in missing for file in files[config]),
        missing=(CARD, *(file for config in missing for file in files[config])),
    )


def plan_archives(source: Repository, local: FolderRepository, groups: Mapping[str, str], rows: Plan) -> Plan:
    """Plan which archives of images to download.

    Args:
        source: the repository to download from; asked only if an archive is missing.
        local: what is there.
        groups: see `image_groups`.
        rows: the plan of the rows, which has been carried out.
    """
    present, missing = set(), set()
    for group, path in groups.items():
        names = archive_names(path)
        found = [name for name in names if local.find(name)]
        unpacked = (local.folder / "images" / group).is_dir()
        if not found and not unpacked:
            # if the repository has no such archive either, opening the images reports it
            missing.update([name for name in names if source.find(name)][:1])
        present.update(found)
    return Plan((*rows.present, *rows.missing, *sorted(present)), tuple(sorted(missing)))


def image_groups(repository: FolderRepository, config: str, split: str) -> dict[str, str]:
    """The groups of images that the rows of a split name, each with one of its paths; see `first_paths`.

    The images of a group are in the same archive.
    """
    table, _ = read_table(repository.files(config, split), _PATHS)
    columns = [pc.list_flatten(table[name].combine_chunks()) for name in _PATHS]
    return first_paths(unique_paths(*columns))
