"""Placeholder rows: a sharded rank runs them if its batch lacks a part that other ranks run."""

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


@torch.inference_mode(False)  # an evaluation may build it first, and a training step saves it for backward
def smallest_image_prompt(collate: VisionLanguageCollate) -> dict[str, Tensor]:
    """A collated batch of one image, with as few tokens as the processor allows."""
    collate = copy.copy(collate)
    collate.edge = None
    if "num_crops" in collate.family.image_options:
        collate.processor = copy.copy(collate.processor)
        collate.processor.image_processor = copy.copy(collate.processor.image_processor)
        collate.processor.image_processor.num_crops = 1
    collate.max_length = None
    return collate([Sample(image=Image.new("RGB", (64, 64)))])


def append_prompt(batch: dict[str, Tensor], row: dict[str, Tensor], tokenizer: Any) -> dict[str, Tensor]:
    """A collated batch of texts with one more prompt, padded to the longer of the two.

    Args:
        batch: tensors (B, L), and no others.
        row: a collated batch of one prompt: the same tensors (1, L'), and those of its images.
        tokenizer: knows the padding token and the padding side.

    Returns:
        Tensors (B + 1, max(L, L')) and those of the images, on the device of the batch.
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
