"""open_clip's models with the images and the activation that their weights were trained with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

__all__ = ["create_model", "settle"]

_KEYS = {
    "image_mean": "mean",
    "image_std": "std",
    "image_interpolation": "interpolation",
    "image_resize_mode": "resize_mode",
    "quick_gelu": "quick_gelu",
}
_CHOICES = {
    "image_interpolation": ("bicubic", "bilinear"),
    "image_resize_mode": ("shortest", "longest", "squash"),
}


def create_model(
    name: str, pretrained: str | None, options: dict[str, Any]
) -> tuple[Any, Callable[[Any], Tensor]]:
    """The model and its evaluation transform; prints how it takes images.

    Args:
        name: the name by which open_clip knows the model.
        pretrained: a tag, the path of a file, or ``None``.
        options: see :func:`settle`.

    Raises:
        ValueError: if an option has no such value, or :func:`settle` does not know it.
    """
    import open_clip

    _check(options)
    settled = settle(name, pretrained, options)
    quick_gelu = settled.pop("quick_gelu")
    if quick_gelu is False and (open_clip.get_model_config(name) or {}).get("quick_gelu"):
        settled["quick_gelu"] = False  # open_clip forces it in the other direction alone
    clip, _, transform = open_clip.create_model_and_transforms(
        name, pretrained=pretrained, force_quick_gelu=bool(quick_gelu), **settled
    )
    images = clip.visual.preprocess_cfg
    mean, std = ([round(colour, 4) for colour in images[key]] for key in ("mean", "std"))
    quick = any(isinstance(module, open_clip.transformer.QuickGELU) for module in clip.modules())
    rank_zero_info(
        f"{name}: images are resized to {images['size']} ({images['interpolation']}, "
        f"{images['resize_mode']}), mean {mean}, std {std}; {'with' if quick else 'without'} QuickGELU"
    )
    return clip, transform


def settle(model: str, pretrained: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Fill in what the user left open, where there is one answer.

    open_clip knows for its tags how they were trained. A file does not say it: it gets what all tags of its
    architecture have in common. Architectures without tags, and random weights, get open_clip's defaults.

    Args:
        model: the name by which open_clip knows the model.
        pretrained: a tag, the path of a file, or ``None``.
        options: ``image_mean``, ``image_std``, ``image_interpolation``, ``image_resize_mode`` and
            ``quick_gelu``; ``None`` is open.

    Returns:
        The options; those that are still ``None`` are left to open_clip.

    Raises:
        ValueError: if the tags of the architecture differ in an option that is open, with their values.
    """
    import open_clip

    if pretrained is None:
        return options
    tags = open_clip.list_pretrained_tags_by_model(model)
    if open_clip.get_pretrained_cfg(model, pretrained):
        tags = [pretrained]
    elif not Path(pretrained).is_file():
        return options  # open_clip has an error for it
    # a name such as ViT-B-32-quickgelu says it
    fixed = {"quick_gelu": True} if (open_clip.get_model_config(model) or {}).get("quick_gelu") else {}
    settled, differing = dict(options), []
    for option, key in _KEYS.items():
        if settled[option] is not None:
            continue
        groups: dict[Any, list[str]] = {}
        for tag in tags:
            value = open_clip.get_pretrained_cfg(model, tag).get(key, False if key == "quick_gelu" else None)
            groups.setdefault(fixed.get(option, value), []).append(tag)
        if len(groups) > 1:
            ways = "; or ".join(f"{option}={value!r} for {_list(names)}" for value, names in groups.items())
            differing.append(f"`{option}` ({ways})")
        elif groups:
            settled[option] = next(iter(groups))
    if differing:
        raise ValueError(
            f"the published weights of {model!r} were trained in different ways, and the file {pretrained!r} "
            f"does not say how its own were: pass {', and '.join(differing)}"
        )
    return settled


def _check(options: dict[str, Any]) -> None:
    for name in ("image_mean", "image_std"):
        colours = options[name]
        if colours is None:
            continue
        numbers = isinstance(colours, list | tuple) and all(isinstance(one, int | float) for one in colours)
        if not numbers or len(colours) != 3 or (name == "image_std" and min(colours) <= 0):
            kind = "positive numbers" if name == "image_std" else "numbers"
            raise ValueError(f"`{name}` must be three {kind}, one a colour, got {colours!r}")
    for name, choices in _CHOICES.items():
        if options[name] is not None and options[name] not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {options[name]!r}")


def _list(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
