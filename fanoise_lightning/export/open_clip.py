"""open_clip's models: a folder that it reads as ``local-dir:``."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from fanoise_lightning.encoders.linear_attention import LinearAttention
from fanoise_lightning.encoders.open_clip_encoder import OpenClipEncoder
from fanoise_lightning.export.weights import has_adapter
from fanoise_lightning.export.written import Written

__all__ = ["write_open_clip"]


def write_open_clip(encoder: OpenClipEncoder, folder: Path) -> Written:
    """Write an open_clip encoder for open_clip.

    Args:
        encoder: with all weights, and without an adapter.
        folder: an empty one.

    Raises:
        ValueError: if it has an adapter, which open_clip cannot read by itself.
    """
    if has_adapter(encoder.clip):
        raise ValueError("open_clip cannot read an adapter: export the merged weights, without `merge=False`")
    images = encoder.clip.visual.preprocess_cfg
    keys = ("mean", "std", "interpolation", "resize_mode")
    config = {
        "model_cfg": _config(encoder),
        "preprocess_cfg": {key: images[key] for key in keys if key in images},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous().clone() for name, tensor in _state(encoder.clip).items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    collate: Any = encoder.collate
    tokenizer = collate.tokenizer
    name = "<end_of_text>"
    if hasattr(tokenizer, "tokenizer"):  # of transformers
        tokenizer.tokenizer.save_pretrained(folder)
        name = tokenizer.tokenizer.eos_token
    reading = {"max_text_length": tokenizer.context_length}
    special_token = name if encoder.split_special_tokens else ""
    return Written("open_clip", ("open_clip",), reading, special_token=special_token)


def _config(encoder: OpenClipEncoder) -> dict[str, Any]:
    """The model's config, with what the encoder was built with, and nothing that is loaded from elsewhere."""
    import open_clip

    name = Path(encoder.model).stem if encoder.model.endswith(".json") else encoder.model
    config = copy.deepcopy(open_clip.get_model_config(name))
    quick = any(isinstance(part, open_clip.transformer.QuickGELU) for part in encoder.clip.modules())
    config["quick_gelu"] = quick
    for part, key in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
        if key in config[part]:
            config[part][key] = False
    return config


def _state(clip: Any) -> dict[str, Tensor]:
    """The weights under open_clip's names, which `LinearAttention` changed."""
    linear = [name for name, part in clip.named_modules() if isinstance(part, LinearAttention)]
    state = dict(clip.state_dict())
    for name in linear:
        for kind in ("weight", "bias"):
            if (key := f"{name}.in_proj.{kind}") in state:
                state[f"{name}.in_proj_{kind}"] = state.pop(key)
    return state
