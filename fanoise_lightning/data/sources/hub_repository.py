"""A data set repository on the Hugging Face hub; `huggingface_hub` is imported on first use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from fsspec.utils import glob_translate

from fanoise_lightning.data.rows.columns import Columns
from fanoise_lightning.data.sources.hub_errors import HubError, attempt
from fanoise_lightning.data.sources.hub_rows import HubRows
from fanoise_lightning.data.sources.repository import CARD, FolderRepository, Repository

__all__ = ["HUB", "HubError", "HubRepository", "open_repository"]

HUB = "hf://datasets/"
AT_ONCE = 8  # files that are downloaded at the same time


class HubRepository(Repository):
    """A repository on the hub, at the commit that was the newest when it was first asked.

    Args:
        location: ``"hf://datasets/<user>/<name>"``.

    Raises:
        ValueError: for a location of another form.

    Example:
        >>> repository = HubRepository("hf://datasets/TIGER-Lab/MMEB-train")  # doctest: +SKIP
        >>> repository.download(repository.shards("SUN397", "original")).folder  # doctest: +SKIP
    """

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.repo_id = location.removeprefix(HUB)
        if not location.startswith(HUB) or self.repo_id.count("/") != 1:
            raise ValueError(f"`{location}` is not a data set repository: expected {HUB}<user>/<name>")

    def find(self, pattern: str) -> list[str]:
        return list(filter(re.compile(glob_translate(pattern)).match, self._sizes))

    def cached(self) -> FolderRepository | None:
        """What was downloaded last, in the hub's cache, ``None`` if nothing was; does not ask the hub."""
        from huggingface_hub import try_to_load_from_cache

        card = try_to_load_from_cache(self.repo_id, CARD, repo_type="dataset")
        return FolderRepository(Path(card).parent) if isinstance(card, str) else None

    def download(self, files: Sequence[str], folder: str | Path | None = None) -> FolderRepository:
        """Download files, except those that are there already; a broken download resumes where it stopped.

        Not with `snapshot_download`, which first waits for a list of all files, without a time limit.

        Args:
            files: relative to the repository.
            folder: where to put them; by default the hub's cache.

        Returns:
            The folder as a repository.

        Raises:
            HubError: if a file cannot be downloaded; names it.
        """
        from huggingface_hub import hf_hub_download

        commit = self._commit

        def download_one(file: str) -> None:
            attempt(
                lambda: hf_hub_download(
                    self.repo_id, file, repo_type="dataset", revision=commit, local_dir=folder
                ),
                f"{self}, `{file}`",
            )

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(download_one, files))  # raises what a thread raised
        return FolderRepository(folder if folder is not None else self._card_file.parent)

    @cached_property
    def _card_file(self) -> Path:
        """The newest card, downloaded into the hub's cache: ``.../snapshots/<commit>/README.md``."""
        from huggingface_hub import hf_hub_download

        return Path(attempt(lambda: hf_hub_download(self.repo_id, CARD, repo_type="dataset"), str(self)))

    @property
    def _commit(self) -> str:
        return self._card_file.parent.name

    @cached_property
    def _sizes(self) -> dict[str, int | None]:
        """The size of each file in bytes, by its path in the repository."""
        from huggingface_hub import HfApi, constants

        info = attempt(
            lambda: HfApi().dataset_info(
                self.repo_id,
                revision=self._commit,
                files_metadata=True,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            ),
            str(self),
        )
        return dict(sorted((file.rfilename, file.size) for file in info.siblings or []))

    def _open(self, files: Sequence[str], columns: Columns) -> HubRows:
        at = f"{self.location}@{self._commit}"
        return HubRows({f"{at}/{file}": self._sizes[file] for file in files}, columns)


def open_repository(location: str) -> HubRepository | FolderRepository:
    """The repository at an address on the hub or in a folder."""
    return HubRepository(location) if location.startswith(HUB) else FolderRepository(location)
