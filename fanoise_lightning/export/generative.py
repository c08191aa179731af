"""Vision-language models: all weights or the adapter, the processor, and a chat template of our prompt."""

from __future__ import annotations

from pathlib import Path

from fanoise_lightning.encoders.families import FAMILIES
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder
from fanoise_lightning.export.chat_template import chat_template
from fanoise_lightning.export.sentence_transformers import write_generative
from fanoise_lightning.export.tokenizers import UNLIMITED, set_tokenizer
from fanoise_lightning.export.written import Written

__all__ = ["write_vision_language"]

_ST, _TRANSFORMERS = "sentence-transformers", "transformers"


def write_vision_language(encoder: VisionLanguageEncoder, folder: Path) -> Written:
    """Write a vision-language encoder for transformers and sentence-transformers.

    Args:
        encoder: a copy that may be changed; if it has an adapter, that alone is written.
        folder: an empty one.

    Raises:
        ValueError: if it needs Python code from its own folder.
    """
    collate, plain = encoder.collate, encoder.positions == "vlm2vec"
    if not collate.family.placeholder:
        raise ValueError(
            f"{encoder.model!r} cannot be exported: it needs Python code from its own folder, whose prompts "
            f"are not known here. Families that can: {', '.join(family.name for family in FAMILIES.values())}"
        )
    processor = collate.processor
    processor.chat_template = chat_template(collate.placeholder, collate.end)
    tokenizer = processor.tokenizer
    tokenizer.chat_template = None  # there must not be a second one
    set_tokenizer(tokenizer, truncation_side="right", model_max_length=encoder.max_length or UNLIMITED)
    encoder.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_generative(
        folder,
        encoder.embedding_dim,
        "mean_tokens" if encoder.pooling == "mean" else "lasttoken",
        encoder.max_length,
        ["text"] if plain else ["text", "image", "message"],
    )
    reading = {
        "pooling": "mean" if encoder.pooling == "mean" else "last",
        "max_text_length": collate.max_text_length,
        "image_size": collate.edge,
        "plain_positions": plain,
        "imports": [collate.family.module] if collate.family.module else [],
    }
    name = next(iter(collate.texts.names), "") if encoder.split_special_tokens else ""
    written = Written(collate.family.name, (_TRANSFORMERS, _ST), reading, True, name)
    _add_limits(written, encoder)
    return written


def _add_limits(written: Written, encoder: VisionLanguageEncoder) -> None:
    collate = encoder.collate
    if collate.max_text_length != encoder.max_length:
        why = f"it has one limit for rows of all kinds: texts are not cut at {collate.max_text_length} tokens"
        written.add_limit("long text", why, _ST)
    if encoder.pooling == "eos":
        why = "a text that is cut loses its end token: cut it first"
        written.add_limit("long text", why, _TRANSFORMERS)
    if encoder.positions == "vlm2vec":
        why = "its positions are the model's own, not VLM2Vec's"
        for kind in ("picture", "grey picture", "text and picture", "two pictures", "picture with a prompt"):
            written.add_limit(kind, why, _ST)
        written.add_limit("places in the text", why, _ST)
    if collate.edge:
        written.steps.append(f"resize every picture to {collate.edge} x {collate.edge} pixels (bicubic)")
    if (module := collate.family.module) is not None:
        written.steps.append(f"`import {module}` before loading: the model type is not part of transformers")
