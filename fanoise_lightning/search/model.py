"""The model of ``fanoise embed`` and ``fanoise search``: from a checkpoint, a recipe, or a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.encoders.remote_code import refuse_remote_code
from fanoise_lightning.module import ContrastiveModule
from fanoise_lightning.training.trust import check_arguments

__all__ = ["hide_loading", "model_of_checkpoint", "model_of_manifest", "model_of_recipe"]


def hide_loading() -> None:
    """For a command: no bar while transformers reads weights; those of downloads stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    show_downloads = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if show_downloads:
        enable_progress_bars()


def model_of_checkpoint(
    path: str | Path, allow: str | Iterable[str] | None = (), trust_remote_code: bool = False
) -> ContrastiveModule:
    """The module of a checkpoint, with its weights on the CPU.

    Args:
        path: the file.
        allow: what the checkpoint may name besides this package and torch.
        trust_remote_code: run the Python code that comes with the encoder's model.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as :meth:`~fanoise_lightning.ContrastiveModule.load_from_checkpoint`.
    """
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"there is no checkpoint `{path}`")
    allowed = (allow,) if isinstance(allow, str) else tuple(allow or ())
    return ContrastiveModule.load_from_checkpoint(
        Path(path).expanduser(), "cpu", allow=allowed, trust_remote_code=trust_remote_code
    )


def model_of_recipe(path: str | Path) -> ContrastiveModule:
    """The encoder of a recipe of ``fanoise fit``, as it is before training.

    Args:
        path: the YAML file. It is the user's own: what it names is built.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has no ``model.encoder``, or one that cannot be built.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no recipe `{path}`")
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
        encoder = recipe.get("fit", recipe)["model"]["encoder"]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"`{path}` is no recipe with `model.encoder` in it ({error})") from error
    return ContrastiveModule(_build(encoder, str(path)))


def model_of_manifest(
    manifest: Mapping[str, Any], allow: str | Iterable[str] | None = (), trust_remote_code: bool = False
) -> ContrastiveModule:
    """The module that wrote a folder, built again; whether it is the same is for the caller to compare.

    Args:
        manifest: of an :class:`~fanoise_lightning.search.folder.EmbeddingFolder`. Like a checkpoint, it is
            data: what it names is checked first.
        allow: as :func:`model_of_checkpoint`.
        trust_remote_code: as :func:`model_of_checkpoint`.

    Raises:
        FileNotFoundError: if its checkpoint is no longer there.
        ValueError: if it describes no model, or one that is not allowed.
    """
    model = manifest["model"]
    if model.get("checkpoint"):
        return model_of_checkpoint(model["checkpoint"], allow, trust_remote_code)
    description = model.get("description")
    if not description:
        raise ValueError("the manifest does not describe its model: pass the model itself")
    check_arguments(ContrastiveModule, {"encoder": description}, allow)
    # not truthiness, as in `load_from_checkpoint`
    with nullcontext() if trust_remote_code is True else refuse_remote_code():
        return ContrastiveModule(_build(description, "the manifest"))


def _build(encoder: Any, where: str) -> Encoder:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Encoder, "encoder", required=True)
    try:
        config = parser.parse_object({"encoder": encoder})
    except Exception as error:  # jsonargparse's own kinds
        raise ValueError(f"the encoder of `{where}` cannot be built: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # parts without pretrained weights, such as a new head, are the same each time
        return parser.instantiate_classes(config).encoder
