"""Rows that stand for nobody: a sharded rank runs them where its batch lacks what other ranks run."""

from __future__ import annotations

import copy
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning.encoders.vision_language_collate import VisionLanguageCollate
from fanoise_lightning.sample import Sample

__all__ = ["append_prompt", "smallest_image_prompt"]


@torch.inference_mode(False)  # a training step saves it for backward, an evaluation may be the first to ask
def smallest_image_prompt(collate: VisionLanguageCollate) -> dict[str, Tensor]:
    """A collated batch of one image, of as few tokens as its processor lets it have."""
    collate = copy.copy(collate)
    collate.side = None
    if "num_crops" in collate.family.image_options:
        collate.processor = copy.copy(collate.processor)
        collate.processor.image_processor = copy.copy(collate.processor.image_processor)
        collate.processor.image_processor.num_crops = 1
    collate.max_length = None
    return collate([Sample(image=Image.new("RGB", (64, 64)))])


def append_prompt(batch: dict[str, Tensor], row: dict[str, Tensor], tokenizer: Any) -> dict[str, Tensor]:
    """A collated batch of texts with one prompt more, padded to the longer of the two.

    Args:
        batch: tensors (B, L) alone.
        row: a collated batch of one, with the same tensors (1, L') and those of its images.
        tokenizer: says what is padded, and on which side.

    Returns:
        (B + 1, max(L, L')), and the tensors of the images; where the batch is.
    """
    device = batch["input_ids"].device
    length = max(batch["input_ids"].shape[1], row["input_ids"].shape[1])
    joined = {name: value.to(device) for name, value in row.items()}
    for name, value in batch.items():
        fill = tokenizer.pad_token_id if name == "input_ids" else 0
        padded = []
        for part in (value, joined[name]):
            missing = length - part.shape[1]
            padding = (missing, 0) if tokenizer.padding_side == "left" else (0, missing)
            padded.append(F.pad(part, padding, value=fill))
        joined[name] = torch.cat(padded)
    return joined
