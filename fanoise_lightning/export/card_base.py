"""What a model card says of the model and the data that an encoder comes from: names on the hub, licences."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fanoise_lightning.data.sources.hub_repository import HUB
from fanoise_lightning.encoders.open_clip_encoder import OpenClipEncoder
from fanoise_lightning.encoders.open_clip_tags import repository_of

__all__ = ["Origin", "base_of", "data_of"]

_CARD = "README.md"


@dataclass(frozen=True)
class Origin:
    """Where weights or rows come from.

    Args:
        name: what to call it; no path of this machine.
        hub_id: its name on the hub, if it is known to be there.
        licences: what its own card says, if that is on this machine.
    """

    name: str
    hub_id: str | None = None
    licences: tuple[str, ...] = ()


def base_of(encoder: Any) -> Origin | None:
    """The pretrained model of an encoder; ``None`` if it was trained from random weights."""
    model = encoder.model
    if isinstance(encoder, OpenClipEncoder):
        model = model.removeprefix("hf-hub:").removeprefix("local-dir:")
        if model == encoder.model:
            return None if encoder.pretrained is None else _of_open_clip(model, encoder.pretrained)
    if not Path(model).is_dir():
        return Origin(model, model, _licences([_cached(model)]))
    folder = Path(model).absolute()
    owner = next((part for part in folder.parts if part.startswith("models--")), None)  # of the hub's cache
    name = folder.name if owner is None else owner.removeprefix("models--").replace("--", "/")
    return Origin(name, None if owner is None else name, _licences([folder / _CARD]))


def data_of(source: str) -> Origin:
    """The training data of a source, as a data module names it."""
    if not source.startswith(HUB):
        folder = Path(source)
        return Origin(folder.name, None, _licences([folder / _CARD, folder / "MMEB-train" / _CARD]))
    name = source.removeprefix(HUB)
    name = name if "/" in name else f"{name}/MMEB-train"
    return Origin(name, name, _licences([_cached(name, "dataset")]))


def _of_open_clip(model: str, pretrained: str) -> Origin:
    name = f"{Path(model).stem} ({Path(pretrained).name})"
    hub_id = repository_of(model, pretrained)
    return Origin(name, hub_id or None, _licences([_cached(hub_id)]) if hub_id else ())


def _cached(repo_id: str, repo_type: str = "model") -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo_id, _CARD, repo_type=repo_type)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _licences(cards: Iterable[Path | None]) -> tuple[str, ...]:
    """The licences in the header of the first of some cards that names any."""
    from huggingface_hub import metadata_load

    for card in cards:
        try:
            header = metadata_load(card) if card is not None and card.is_file() else None
        except (ValueError, yaml.YAMLError):  # not a mapping, or not YAML
            continue
        found = (header or {}).get("license")
        named = found if isinstance(found, list) else [found]
        if licences := tuple(
            name for name in named if isinstance(name, str) and re.fullmatch(r"[\w.-]+", name)
        ):
            return licences
    return ()
