"""Two-tower models of transformers: all weights or the adapter, and the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fanoise_lightning.encoders.loading import load_processor
from fanoise_lightning.encoders.two_tower import TwoTowerEncoder
from fanoise_lightning.export.sentence_transformers import write_two_towers
from fanoise_lightning.export.tokenizers import set_tokenizer
from fanoise_lightning.export.written import Written

__all__ = ["write_two_tower"]

_NAMES = {"clip": "CLIP", "siglip": "SigLIP", "siglip2": "SigLIP 2", "align": "ALIGN"}
_ONNX_ALONE = {"blip": "BLIP", "blip-2": "BLIP-2"}  # the libraries load other parts of these models
_ST = "sentence-transformers"


def write_two_tower(encoder: TwoTowerEncoder, folder: Path, onnx: bool) -> Written:
    """Write a two-tower encoder for transformers and sentence-transformers.

    Args:
        encoder: if it has an adapter, that alone is written.
        folder: an empty one.
        onnx: whether its towers will be written to ONNX files as well.

    Raises:
        ValueError: if no library would read its towers: BLIP and BLIP-2 without ONNX.
    """
    model_type = encoder.network.config.model_type
    if model_type in _ONNX_ALONE and not onnx:
        raise ValueError(
            f"a {model_type} model cannot be exported: neither transformers' `AutoModel` nor "
            f"sentence-transformers loads the towers of {type(encoder.network).__name__}. Families that can: "
            f"{', '.join(_NAMES.values())}. With `onnx=True`, onnxruntime runs them"
        )
    collate = encoder.collate
    processor = load_processor(encoder.model)
    set_tokenizer(processor.tokenizer, padding_side="right")
    encoder.network.save_pretrained(folder)
    processor.save_pretrained(folder)
    siglip, length = collate.siglip, collate.context_length
    reading = {"siglip": siglip, "max_text_length": length}
    name = next(iter(collate.read.names), "") if encoder.split_special_tokens else ""
    if model_type in _ONNX_ALONE:
        return Written(_ONNX_ALONE[model_type], (), reading, special_token=name)
    write_two_towers(folder, length, _processing(encoder) if siglip else {}, siglip)
    written = Written(_NAMES[model_type], ("transformers", _ST), reading, special_token=name)
    if siglip:
        written.steps.append("for transformers alone: lower-case every text")
    written.add_limit("text and picture", "one modality a row: add the two unit vectors", _ST)
    written.add_limit("picture with a prompt", "the prompt is dropped, without a word", _ST)
    if model_type == "siglip2":
        written.add_limit("grey picture", "its processor takes RGB only: convert it first")
    return written


def _processing(encoder: TwoTowerEncoder) -> dict[str, Any]:
    """How SigLIP's processor is called: texts of one length, without a mask."""
    text = {
        "padding": "max_length",
        "max_length": encoder.collate.context_length,
        "truncation": True,
        "return_attention_mask": False,
        "padding_side": "right",
    }
    images = encoder.collate.image_processor
    names = [name for name in ("patch_size", "max_num_patches") if hasattr(images, name)]
    image = {name: getattr(images, name) for name in names}
    return {"text": text, **({"image": image} if image else {})}
