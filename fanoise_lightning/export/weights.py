"""A copy of an encoder with its adapter merged into the weights; the encoder stays as it is."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from fanoise_lightning.encoders.base import Encoder

__all__ = ["has_adapter", "merge_adapter", "name_the_base", "plain_copy"]

E = TypeVar("E", bound=Encoder)


def has_adapter(network: nn.Module) -> bool:
    """Whether peft put an adapter on a network."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(part, BaseTunerLayer) for part in network.modules())


def plain_copy(encoder: E) -> E:
    """A copy of an encoder in eval mode, none of whose weights are trained."""
    return copy.deepcopy(encoder).eval().requires_grad_(False)


def merge_adapter(network: Any) -> None:
    """Merge an adapter of peft into the weights of its network, and leave nothing else of it.

    ``peft``'s own ``merge_and_unload`` wants a ``PeftModel``, which has other key names.

    Raises:
        ValueError: if merged weights are not finite.
    """
    _merge_children(network)
    for name in ("peft_config", "active_adapters", "get_adapter_state_dict", "_hf_peft_config_loaded"):
        vars(network).pop(name, None)


def name_the_base(folder: Path, network: Any) -> dict[str, Any]:
    """Say in a saved adapter's config which model it belongs to, wherever the reader is started.

    Returns:
        What tells this model from another one of its name: its revision on the hub, or the SHA-256 of each of
        its files of weights, as `sha256sum` and the hub show it.
    """
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    base = Path(network.name_or_path)
    config["base_model_name_or_path"] = str(base.absolute()) if base.is_dir() else network.name_or_path
    config["revision"] = getattr(network.config, "_commit_hash", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if not base.is_dir():
        return {"revision": config["revision"]}
    return {"sha256": {weights.name: _sha256(weights) for weights in _weight_files(base)}}


def _weight_files(folder: Path) -> list[Path]:
    """Those that transformers reads."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _merge_children(network: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, child in list(network.named_children()):
        part: Any = child
        if hasattr(part, "unload_and_optionally_merge_module"):  # saved whole, or some tokens of it
            part = part.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        while isinstance(part, BaseTunerLayer):
            part.merge(safe_merge=True)
            part = part.get_base_layer()
        setattr(network, name, part)
        _merge_children(part)
