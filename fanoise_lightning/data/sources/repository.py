"""A data set repository: which of its files hold the rows of a config and split.

No row is lost silently: the shards are checked against the numbers in their names, and the rows against the
number on the card.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fanoise_lightning._checks import check_names
from fanoise_lightning.data.rows.columns import Columns
from fanoise_lightning.data.rows.paths import LEAVES_ROOT
from fanoise_lightning.data.rows.shards import FileRows

__all__ = ["CARD", "FolderRepository", "Repository"]

CARD = "README.md"

_SHARD = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?\.parquet$")


class Repository(ABC):
    """The files of a data set, found by its card as `datasets` finds them.

    Args:
        location: the folder or the address on the hub, for messages.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    def __str__(self) -> str:
        return f"`{self.location}`"

    @abstractmethod
    def find(self, pattern: str) -> list[str]:
        """The files that match a pattern, relative to the repository, sorted."""

    @property
    @abstractmethod
    def _card_file(self) -> Path: ...

    @abstractmethod
    def _open(self, files: Sequence[str], columns: Columns) -> FileRows: ...

    def stream(self, config: str, split: str, columns: Columns) -> FileRows:
        """Open the rows of a split, to be read shard by shard.

        Raises:
            ValueError: for an unknown config or split, a file that cannot be read or lacks a column, or if
                the number of rows is not that on the card.
            FileNotFoundError: if a file is missing.
            HubError: if a file on the hub cannot be read.
        """
        files = self.shards(config, split)
        rows, expected = self._open(files, columns), self._rows_on_card(config, split)
        if expected is not None and rows.num_rows != expected:
            raise ValueError(
                f"{self}, config `{config}`, split `{split}`: its {len(files)} files hold {rows.num_rows} "
                f"rows, its {CARD} says {expected}; fetch the repository again"
            )
        return rows

    def num_rows(self, config: str, split: str) -> int:
        """Count the rows of a split by the footers of its files; same errors as `stream`."""
        return self.stream(config, split, {}).num_rows

    def shards(self, config: str, split: str) -> list[str]:
        """The files of a split, in the order of their names.

        Raises:
            ValueError: for an unknown config or split, with those that exist.
            FileNotFoundError: if a file is missing.
        """
        check_names([config], self.patterns, f"config of {self}")
        check_names([split], self.patterns[config], f"split of config `{config}` of {self}")
        patterns = self.patterns[config][split]
        files = sorted({file for pattern in patterns for file in self.find(pattern)})
        if not files:
            raise FileNotFoundError(
                f"{self} has no file for config `{config}`, split `{split}`; expected {', '.join(patterns)}"
            )
        numbered = [match for match in map(_SHARD.search, files) if match is not None]
        count = max((int(match["count"]) for match in numbered), default=0)
        missing = sorted(set(range(count)) - {int(match["number"]) for match in numbered})
        if missing:
            raise FileNotFoundError(
                f"{self}, config `{config}`, split `{split}`: {len(missing)} of {count} shards are missing, "
                f"the first is number {missing[0]:05d}; fetch the repository again"
            )
        return files

    @cached_property
    def patterns(self) -> dict[str, dict[str, list[str]]]:
        """The patterns of the files of each config and split; without a card, each folder is a config.

        Raises:
            ValueError: if the card cannot be read, or does not give the place of the rows.
        """
        configs = self._card.get("configs")
        if not configs:
            return self._patterns_without_card()
        try:
            return {config["config_name"]: _split_patterns(config["data_files"]) for config in configs}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the card of {self} must give `config_name` and `data_files` of each config: {error!r}"
            ) from error

    def _patterns_without_card(self) -> dict[str, dict[str, list[str]]]:
        found: dict[str, dict[str, list[str]]] = {}
        for file in self.find("*/*.parquet"):
            config, name = file.split("/")
            split = re.split(r"-\d{5}-of-|\.parquet", name)[0]
            found.setdefault(config, {})[split] = [
                f"{config}/{split}.parquet",
                f"{config}/{split}-[0-9]*.parquet",
            ]
        return found

    @cached_property
    def _card(self) -> dict[str, Any]:
        """The YAML block at the top of the card, empty without a card."""
        from huggingface_hub import DatasetCard

        if not self._card_file.is_file():
            return {}
        try:
            return DatasetCard.load(self._card_file, ignore_metadata_errors=False).data.to_dict()
        except Exception as error:  # YAML errors of several kinds
            raise ValueError(f"the card of {self} cannot be read: {error}") from error

    def _rows_on_card(self, config: str, split: str) -> int | None:
        infos = self._card.get("dataset_info") or []
        if isinstance(infos, dict):  # of a repository with one config
            infos = [infos]
        for info in infos:
            if info.get("config_name", "default") == config:
                for entry in info.get("splits") or []:
                    if entry.get("name") == split:
                        return entry.get("num_examples")
        return None


class FolderRepository(Repository):
    """A folder with the files of a repository, all or some.

    Example:
        >>> repository = FolderRepository("mmeb/MMEB-train")  # doctest: +SKIP
        >>> repository.shards("SUN397", "original")  # doctest: +SKIP
        ['SUN397/original-00000-of-00001.parquet']
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(str(folder))
        self.folder = Path(folder)

    def find(self, pattern: str) -> list[str]:
        if re.search(LEAVES_ROOT, pattern):
            raise ValueError(f"{self}: `{pattern}` leaves the repository; give a path inside it")
        pattern += "/*" if pattern.endswith("**") else ""  # else Python before 3.13 finds folders alone
        found = filter(Path.is_file, self.folder.glob(pattern))
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def files(self, config: str, split: str) -> list[Path]:
        """The paths of the `shards` of a split."""
        return [self.folder / shard for shard in self.shards(config, split)]

    def is_whole(self, config: str, split: str) -> bool:
        """Whether all files and rows of a split are in the folder."""
        try:
            return self.num_rows(config, split) > 0
        except (OSError, ValueError):
            return False

    @property
    def _card_file(self) -> Path:
        return self.folder / CARD

    def _open(self, files: Sequence[str], columns: Columns) -> FileRows:
        try:
            return FileRows([self.folder / file for file in files], columns)
        except ValueError as error:
            raise ValueError(f"{error}; remove the file and fetch it again") from error


def _split_patterns(data_files: Any) -> dict[str, list[str]]:
    """The patterns of each split, from any of the forms that ``data_files`` has on cards.

    `datasets` reads them only as part of a builder, which asks the hub several times for each config.
    """
    found: dict[str, list[str]] = {}
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        split, paths = (entry["split"], entry["path"]) if isinstance(entry, dict) else ("train", entry)
        for path in [paths] if isinstance(paths, str) else paths:
            if not isinstance(path, str) or not path or re.search(LEAVES_ROOT, path):
                raise ValueError(f"{path!r} in `data_files` must be a path inside the repository")
            found.setdefault(split, []).append(path)
    return found
