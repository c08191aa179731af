"""The fingerprint of an encoder: equal for encoders that embed alike, wherever they were loaded from."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from inspect import signature
from typing import Any

import torch
from PIL.Image import linear_gradient, merge
from torch import nn

from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.sample import Sample

__all__ = ["fingerprint"]

# where weights or features lie; the weights themselves count
_PLACES = ("model", "pretrained", "adapter", "folder")


def fingerprint(encoder: Encoder) -> str:
    """32 hexadecimal digits: the encoder's weights and options, and its inputs of a text and an image.

    It does not depend on where the weights were loaded from, or which device they are on.

    Args:
        encoder: all its weights are read, which takes about a second per gigabyte.

    Example:
        >>> fingerprint(OpenClipEncoder("ViT-B-32"))      # doctest: +SKIP
        '6a0a2f9c41f35c1e0d4f2c7d1f6f9b10'
    """
    digest = blake2b(type(encoder).__name__.encode(), digest_size=16)
    # of CachedFeatures the encoder's own inputs: features that are known would make others
    collate = getattr(encoder.collate, "inner", encoder.collate)
    probe = collate([Sample("a red apple", merge("RGB", [linear_gradient("L")] * 3))])
    # in 8 bits, images do not show how the encoder normalises them
    probe = getattr(collate, "to_floats", dict)(probe)
    for part in (encoder.state_dict(), probe):
        for name, value in sorted(part.items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for name, module in encoder.named_modules():
        digest.update(f"{name} {_options(module)}".encode())
    return digest.hexdigest()


def _options(module: nn.Module) -> list[tuple[str, Any]]:
    """Arguments that a module keeps, such as the pooling: with other ones, its embeddings are others."""
    known = _arguments(type(module))  # type: ignore[arg-type]  # mypy takes a class for unhashable
    kept = sorted((name, value) for name, value in vars(module).items() if name in known)
    return [(name, value) for name, value in kept if _is_plain(value)]


@cache  # a model has many modules of few classes
def _arguments(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(signature(kind).parameters).difference(_PLACES)


def _is_plain(value: Any) -> bool:
    """Whether the text of a value is the same in every process."""
    if isinstance(value, dict):
        return all(_is_plain(part) for item in value.items() for part in item)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | torch.dtype)
