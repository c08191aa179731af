"""Whether a model can be had: a missing folder, or a hub that does not answer, is said at once."""

from __future__ import annotations

import os
from pathlib import Path

from fanoise_lightning._hub import WAIT, failure_of

__all__ = ["check_available"]

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")


def check_available(model: str, what: str = "model") -> None:
    """Refuse a model that cannot be loaded, before `huggingface_hub` tries and tries again.

    The hub is asked only for what neither lies in a folder nor has its weights in the cache. Any answer will
    do; whether the model exists is for the library that loads it to say.

    Args:
        model: a hub id or a folder.
        what: what to call it in the error.

    Raises:
        FileNotFoundError: if a path leads to no folder.
        ConnectionError: if the hub is needed and does not answer within 8 seconds.
    """
    if Path(model).is_dir():
        return
    if _is_path(model):
        home = Path(model).expanduser()
        hint = f"pass {str(home)!r} instead" if home.is_dir() else f"check the path, seen from {Path.cwd()}"
        raise FileNotFoundError(f"there is no folder {model!r} with a {what}: {hint}")
    if _is_cached(model):
        return
    from huggingface_hub import constants, get_session, hf_hub_url

    error = failure_of(lambda: get_session().head(hf_hub_url(model, "config.json"), timeout=WAIT))
    if error is not None:
        raise ConnectionError(
            f"the {what} {model!r} is neither a folder in {Path.cwd()} nor in the cache "
            f"({constants.HF_HUB_CACHE}), and the hub at {constants.ENDPOINT} cannot be reached "
            f"({type(error).__name__}: {error}). Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or run "
            f"`hf download {model}` where there is a network and pass the folder"
        ) from error


def _is_path(model: str) -> bool:
    """Whether a name can be nothing but a path: a hub id is `name` or `owner/name`."""
    return model.startswith((".", "~")) or os.path.isabs(model) or "\\" in model or model.count("/") > 1


def _is_cached(model: str) -> bool:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return False
    return any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)
