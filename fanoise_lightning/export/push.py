"""Uploading an exported folder to the Hugging Face hub."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from fanoise_lightning._log import report
from fanoise_lightning._version import __version__
from fanoise_lightning.export.export_encoder import RECEIPT

__all__ = ["check_push", "push_folder"]

_OF_A_NEW_REPOSITORY = {".gitattributes", "README.md"}


def check_push(repo_id: str) -> None:
    """Refuse a push that cannot succeed, before anything is exported.

    Args:
        repo_id: ``user/name``.

    Raises:
        ValueError: if it is not of this form.
        PermissionError: if nobody is logged in.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repository, `user/name`: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no name of a repository: expected `user/name`")
    if get_token() is None:
        raise PermissionError(
            f"a push to {repo_id} needs a token that may write there: run `hf auth login`, or set HF_TOKEN"
        )


def push_folder(folder: Path, repo_id: str, private: bool = False) -> str:
    """Let a repository on the hub hold what is in an exported folder, and nothing else.

    Args:
        folder: one that a library was seen to read.
        repo_id: ``user/name``; it is created if it is not there.
        private: create it as a private one.

    Returns:
        Its address.

    Raises:
        ValueError: if no library has read the folder; if its adapter belongs to a model on this machine; if
            the repository holds another model, or is public and `private` is set.
        OSError: if the hub cannot be reached, or refuses. The folder stays as it is.
    """
    from huggingface_hub import HfApi

    _check_folder(folder)
    api = HfApi(library_name="fanoise-lightning", library_version=__version__)
    with _naming_the_push(folder, repo_id, private):
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        known = api.model_info(repo_id)
        files = {file.rfilename for file in known.siblings or []}
        is_public = not known.private
    if private and is_public:
        raise ValueError(f"{repo_id} is public; nothing was uploaded: make it private, or name another")
    if files - _OF_A_NEW_REPOSITORY and RECEIPT not in files:
        raise ValueError(
            f"{repo_id} holds another model, with {min(files - _OF_A_NEW_REPOSITORY)} and no {RECEIPT}; "
            "nothing was uploaded: name a new repository"
        )
    with _naming_the_push(folder, repo_id, private):
        # what an earlier push left, such as other shards of weights, a reader would mix with these
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Upload with fanoise-lightning",
            delete_patterns="*",
        )
    report(f"pushed `{folder}` to {url}")
    return str(url)


def _check_folder(folder: Path) -> None:
    receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    if not any(reader["status"] == "verified" for reader in receipt["readers"].values()):
        raise ValueError(
            f"`{folder}` was not pushed: no library was seen to read it. Export again with `--verify=true`, "
            f"where one of {', '.join(receipt['readers'])} is installed"
        )
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if Path(base).is_absolute():
            raise ValueError(
                f"`{folder}` was not pushed: its adapter belongs to `{base}`, which only this machine has. "
                "Export it again without `--adapter_only`, or train from a model of the hub"
            )


@contextmanager
def _naming_the_push(folder: Path, repo_id: str, private: bool) -> Iterator[None]:
    """Say what a failed push leaves, and how to repeat it; never with a token."""
    try:
        yield
    except Exception as error:
        command = f"hf upload {repo_id} {shlex.quote(str(folder))} .{' --private' if private else ''}"
        _fail(error, command, repo_id, folder)


def _fail(error: Exception, command: str, repo_id: str, folder: Path) -> NoReturn:
    from huggingface_hub import get_token

    why = " ".join(f"{type(error).__name__}: {error}".split())
    if token := get_token():
        why = why.replace(token, "<token>")  # an answer may quote the request
    raise OSError(
        f"the push to {repo_id} failed ({why}). `{folder}` is complete: push it with `{command}`, if need be "
        "after `hf auth login` with a token that may write there"
    ) from None  # the cause may have the token
