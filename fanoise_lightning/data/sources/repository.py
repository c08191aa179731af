"""A data set repository: on the Hugging Face hub, or a folder with the same files.

Nothing is ever lost in silence: shards are counted against their names, and rows against the card.
`huggingface_hub` is imported on first use.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fanoise_lightning._checks import check_names
from fanoise_lightning.data.rows.columns import Columns
from fanoise_lightning.data.rows.paths import LEAVES_ROOT
from fanoise_lightning.data.rows.shards import FileRows
from fanoise_lightning.data.sources.hub_errors import HubError, attempt, hub_errors
from fanoise_lightning.data.sources.hub_rows import HubRows

__all__ = ["HUB", "HubError", "Repository", "hub_errors"]

HUB = "hf://datasets/"
CARD = "README.md"

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(-[0-9a-f]+)?\.parquet$")


class Repository:
    """Which files of a data set repository hold what; found by its card as `datasets` finds them.

    Args:
        location: ``"hf://datasets/<user>/<name>"``, or a folder with such a repository's files, all or some.

    Example:
        >>> repository = Repository("hf://datasets/TIGER-Lab/MMEB-train")  # doctest: +SKIP
        >>> repository.shards("SUN397", "original")  # doctest: +SKIP
        ['SUN397/original-00000-of-00001.parquet']
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self.repo_id = self.location.removeprefix(HUB) if self.location.startswith(HUB) else None
        if self.repo_id is not None and self.repo_id.count("/") != 1:
            raise ValueError(f"`{location}` is no data set repository: expected {HUB}<user>/<name>")
        self.folder = None if self.repo_id else Path(location)

    def __str__(self) -> str:
        return f"`{self.location}`"

    @cached_property
    def _listing(self) -> tuple[str, dict[str, int | None]]:
        """The commit and the files of a repository on the hub, with their sizes."""
        from huggingface_hub import HfApi

        info = attempt(lambda: HfApi().dataset_info(self.repo_id or "", files_metadata=True), str(self))
        files = {file.rfilename: file.size for file in info.siblings or []}
        return str(info.sha), dict(sorted(files.items()))

    def find(self, pattern: str) -> list[str]:
        """The files that match a pattern, relative to the repository, sorted."""
        if self.folder is None:
            return fnmatch.filter(self._listing[1], pattern)
        if re.search(LEAVES_ROOT, pattern):
            raise ValueError(f"{self}: `{pattern}` leaves the repository: what it holds lies inside it")
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob(pattern))

    def url(self, file: str) -> str:
        """A path, or on the hub the URL at the commit seen first."""
        if self.folder is not None:
            return str(self.folder / file)
        return f"{self.location}@{self._listing[0]}/{file}"

    @cached_property
    def _card(self) -> dict[str, Any]:
        """The YAML block at the top of the card."""
        from huggingface_hub import DatasetCard

        folder = self.folder
        if folder is None:
            if CARD not in self._listing[1]:
                raise HubError(f"{self} has no {CARD} that lists its configs: is it the right repository?")
            folder = self.download([CARD]).folder
        assert folder is not None
        if not (folder / CARD).is_file():
            return {}
        try:
            return DatasetCard.load(folder / CARD, ignore_metadata_errors=False).data.to_dict()
        except Exception as error:  # YAML errors of several kinds
            raise ValueError(f"the card of {self} cannot be read: {error}") from error

    @cached_property
    def patterns(self) -> dict[str, dict[str, list[str]]]:
        """The patterns of the files of each config and split; without a card, one folder per config."""
        if not (configs := self._card.get("configs")):
            files = [Path(file) for file in self.find("*/*.parquet")]
            names = {(file.parent.name, re.split(r"-\d{5}-of-|\.parquet", file.name)[0]) for file in files}
            found: dict[str, dict[str, list[str]]] = {}
            for config, split in sorted(names):
                exact = [f"{config}/{split}.parquet", f"{config}/{split}-[0-9]*.parquet"]
                found.setdefault(config, {})[split] = exact
            return found
        try:
            return {config["config_name"]: _patterns(config["data_files"]) for config in configs}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the card of {self} must give `config_name` and `data_files` of each config: {error!r}"
            ) from error
        except ValueError as error:
            raise ValueError(f"the card of {self}: {error}") from error

    def shards(self, config: str, split: str) -> list[str]:
        """The parquet files of a split, in the order of their names.

        Raises:
            ValueError: for an unknown config or split, with those that there are.
            FileNotFoundError: if a file is missing.
        """
        check_names([config], self.patterns, f"config of {self}")
        check_names([split], self.patterns[config], f"split of config `{config}` of {self}")
        patterns = self.patterns[config][split]
        shards = sorted({file for pattern in patterns for file in self.find(pattern)})
        if not shards:
            raise FileNotFoundError(
                f"{self} has no file for config `{config}`, split `{split}`; expected {', '.join(patterns)}"
            )
        numbered = [match for match in map(_SHARD.search, shards) if match]
        wanted = {f"{number:05d}" for number in range(max((int(match[2]) for match in numbered), default=0))}
        if lost := sorted(wanted - {match[1] for match in numbered}):
            raise FileNotFoundError(
                f"{self}, config `{config}`, split `{split}`: {len(lost)} of {len(wanted)} shards are "
                f"missing, the first is number {lost[0]}; fetch the repository again"
            )
        return shards

    def available(self, split: str) -> list[str]:
        """The configs of a folder that have all files and rows of `split`, in alphabetical order."""

        def is_whole(config: str) -> bool:
            try:
                return self.num_rows(config, split) > 0
            except (OSError, ValueError):
                return False

        return [config for config in sorted(self.patterns) if is_whole(config)]

    def num_rows(self, config: str, split: str) -> int:
        """The rows of a split: from the files' footers, on the hub from the card where it tells.

        Raises:
            ValueError: if the files of a folder hold another number of rows than the card says.
        """
        told = self._told_rows(config, split)
        if self.folder is None and told is not None:
            return told
        shards = self.shards(config, split)
        counted = sum(map(self._num_rows, shards))
        if told is not None and counted != told:
            raise ValueError(
                f"{self}, config `{config}`, split `{split}`: its {len(shards)} files hold {counted} rows, "
                f"its {CARD} says {told}: fetch the repository again"
            )
        return counted

    def _told_rows(self, config: str, split: str) -> int | None:
        infos = self._card.get("dataset_info") or []
        for info in [infos] if isinstance(infos, dict) else infos:
            if info.get("config_name", "default") == config:
                for entry in info.get("splits") or []:
                    if entry.get("name") == split:
                        return entry.get("num_examples")
        return None

    def _num_rows(self, file: str) -> int:
        if self.folder is None:
            return HubRows({self.url(file): self._listing[1][file]}, {}).num_rows
        try:
            return pq.read_metadata(self.folder / file).num_rows
        except pa.ArrowException as error:
            raise ValueError(
                f"`{self.url(file)}` is no whole parquet file: remove it and fetch it again"
            ) from error

    def stream(self, config: str, split: str, columns: Columns) -> FileRows | HubRows:
        """The rows of a split in shards, never all in memory."""
        shards = self.shards(config, split)
        if self.folder is not None:
            return FileRows([self.folder / shard for shard in shards], columns)
        return HubRows({self.url(shard): self._listing[1][shard] for shard in shards}, columns)

    def cached(self) -> Repository | None:
        """The folder in the hub's cache that holds what was downloaded before, without asking the hub."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        if self.folder is not None:
            return self
        try:
            return Repository(
                snapshot_download(
                    self.repo_id or "", repo_type="dataset", allow_patterns=CARD, local_files_only=True
                )
            )
        except LocalEntryNotFoundError:
            return None

    def download(self, files: Sequence[str], folder: str | Path | None = None) -> Repository:
        """Fetch files, those that are not there yet; a broken download goes on where it broke.

        Args:
            files: relative to the repository.
            folder: where to; by default the hub's cache.

        Returns:
            The folder as a repository.

        Raises:
            HubError: if it fails again and again.
        """
        from huggingface_hub import snapshot_download

        def fetch() -> Repository:
            path = snapshot_download(
                self.repo_id or "", repo_type="dataset", allow_patterns=list(files), local_dir=folder
            )
            # with an older copy at hand, an unreachable hub is no error there
            if missing := [file for file in files if not (Path(path) / file).is_file()]:
                raise ConnectionError(f"{len(missing)} files did not come, the first is `{missing[0]}`")
            return Repository(path)

        return attempt(fetch, str(self))


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """The patterns of each split, from any of the forms that a card may have."""
    entries = data_files if isinstance(data_files, list) else [data_files]
    found: dict[str, list[str]] = {}
    for entry in entries:
        split, paths = (entry["split"], entry["path"]) if isinstance(entry, dict) else ("train", entry)
        paths = [paths] if isinstance(paths, str) else paths
        for path in paths:
            if not isinstance(path, str) or not path or re.search(LEAVES_ROOT, path):
                raise ValueError(f"{path!r} in `data_files` must be a path inside the repository")
        found.setdefault(split, []).extend(paths)
    return found
