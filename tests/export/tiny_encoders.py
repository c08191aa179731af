"""Tiny random encoders of every family that can be exported, with adapters whose weights are not zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_models
import tiny_two_towers
import torch

from fanoise_lightning import OpenClipEncoder, TwoTowerEncoder, VisionLanguageEncoder

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
ATTENTION = r".*language_model\.layers\.\d+\.self_attn\.[qv]_proj"

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": ("qwen2_vl", {"lora": {"r": 2}, "max_length": 60}),
    "qwen2_vl, all weights": ("qwen2_vl", {"max_pixels": 4 * 28 * 28, "split_special_tokens": False}),
    "qwen2_vl, bfloat16": ("qwen2_vl", {"lora": {"r": 2}, "dtype": "bfloat16"}),
    "qwen2_vl, as VLM2Vec": ("qwen2_vl", {"positions": "vlm2vec", "image_size": 56}),
    "qwen2_vl, eos": ("qwen2_vl", {"pooling": "eos", "max_length": 60, "max_text_length": 40}),
    "qwen2_5_vl": ("qwen2_5_vl", {"lora": {"r": 2, "dora": True}}),
    "qwen3_vl": ("qwen3_vl", {"pooling": "mean", "max_length": 24}),
    "llava_next": ("llava_next", {"lora": {"r": 2}, "image_size": 56, "max_text_length": 30}),
    "phi3_v": ("phi3_v", {"lora": {"r": 2}, "num_crops": 1}),
    "clip": ("clip", {"lora": {"r": 2}}),
    "siglip": ("siglip", {"lora": {"r": 2}}),
    "siglip2": ("siglip2", {}),
    "align": ("align", {}),
}


def build(folder: Path, name: str) -> Any:
    """An encoder whose model is saved in a folder, by a name of `OPTIONS`."""
    family, options = OPTIONS[name]
    if family in tiny_two_towers.BUILDERS:
        encoder: Any = TwoTowerEncoder(tiny_two_towers.save_tiny(folder, family), **options)
    else:
        encoder = VisionLanguageEncoder(as_published(tiny_models.save_tiny(folder, family)), **options)
    return trained(encoder)


def as_published(folder: str) -> str:
    """The folder of a model, with chat templates and tokenizer settings that the encoder does not use."""
    template = "<chat>{{ messages[0]['content'] }}"
    (Path(folder) / "chat_template.jinja").write_text(template)
    file = Path(folder) / "tokenizer_config.json"
    named = [{"name": name, "template": template} for name in ("default", "tool_use")]
    unused = {"chat_template": named, "truncation_side": "left", "model_max_length": 50}
    file.write_text(json.dumps(json.loads(file.read_text()) | unused))
    return folder


def build_open_clip(folder: Path, **options: Any) -> OpenClipEncoder:
    """An open_clip encoder whose config is in a folder, which is made."""
    folder.mkdir()
    config = folder / "tiny-exported.json"
    config.write_text(json.dumps({"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}))
    torch.manual_seed(0)
    return trained(OpenClipEncoder(str(config), **options))


def trained(encoder: Any) -> Any:
    """The encoder, its adapter as after training."""
    torch.manual_seed(1)
    if encoder.lora is not None:
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return encoder
