"""open_clip's models with the images and the activation that their weights were trained with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fanoise_lightning._checks import check_choice
from fanoise_lightning._log import report
from fanoise_lightning.encoders.loading import listed

__all__ = ["Interpolation", "ResizeMode", "create_model", "repository_of", "settle"]

Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]

_KEYS = {
    "image_mean": "mean",
    "image_std": "std",
    "image_interpolation": "interpolation",
    "image_resize_mode": "resize_mode",
    "quick_gelu": "quick_gelu",
}
_CHOICES = {"image_interpolation": Interpolation, "image_resize_mode": ResizeMode}


def create_model(
    name: str, pretrained: str | None, options: dict[str, Any]
) -> tuple[Any, Callable[[Any], Tensor]]:
    """The model and its evaluation transform; prints how images are prepared.

    Args:
        name: the name by which open_clip knows the model.
        pretrained: a tag, the path of a file, or ``None``.
        options: see :func:`settle`.

    Raises:
        ValueError: if an option has no such value, or :func:`settle` cannot determine it.
    """
    import open_clip

    _check(options)
    settled = settle(name, pretrained, options)
    quick_gelu = settled.pop("quick_gelu")
    if quick_gelu is False and (open_clip.get_model_config(name) or {}).get("quick_gelu"):
        settled["quick_gelu"] = False  # `force_quick_gelu` can only turn it on
    clip, _, transform = open_clip.create_model_and_transforms(
        name, pretrained=pretrained, force_quick_gelu=bool(quick_gelu), **settled
    )
    images = clip.visual.preprocess_cfg
    mean, std = ([round(colour, 4) for colour in images[key]] for key in ("mean", "std"))
    quick = any(isinstance(module, open_clip.transformer.QuickGELU) for module in clip.modules())
    report(
        f"{name}: images are resized to {images['size']} ({images['interpolation']}, "
        f"{images['resize_mode']}), mean {mean}, std {std}; {'with' if quick else 'without'} QuickGELU"
    )
    return clip, transform


def settle(model: str, pretrained: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Fill in the options that the user left open, where there is one answer.

    open_clip knows how the weights of its tags were trained. A file does not say: it gets what all tags of
    its architecture have in common. Architectures without tags, and random weights, get open_clip's defaults.

    Args:
        model: the name by which open_clip knows the model.
        pretrained: a tag, the path of a file, or ``None``.
        options: ``image_mean``, ``image_std``, ``image_interpolation``, ``image_resize_mode`` and
            ``quick_gelu``; ``None`` leaves one open.

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
        return options  # open_clip reports it
    # a config such as that of ViT-B-32-quickgelu overrules its tags
    always_quick_gelu = bool((open_clip.get_model_config(model) or {}).get("quick_gelu"))
    settled, differing = dict(options), []
    for option, key in _KEYS.items():
        if settled[option] is not None:
            continue
        groups: dict[Any, list[str]] = {}
        for tag in tags:
            value = open_clip.get_pretrained_cfg(model, tag).get(key)
            if option == "quick_gelu":
                value = always_quick_gelu or bool(value)
            groups.setdefault(value, []).append(tag)
        if len(groups) > 1:
            ways = "; or ".join(f"{option}={value!r} for {listed(of, 4)}" for value, of in groups.items())
            differing.append(f"`{option}` ({ways})")
        elif groups:
            settled[option] = next(iter(groups))
    if differing:
        raise ValueError(
            f"the published weights of {model!r} were trained in different ways, and the file {pretrained!r} "
            f"does not say how its own were: pass {', and '.join(differing)}"
        )
    return settled


def repository_of(model: str, tag: str) -> str:
    """The repository on the hub with the weights of a tag; ``""`` if they are elsewhere.

    Example:
        >>> repository_of("ViTamin-S", "datacomp1b"), repository_of("ViT-B-32", "openai")
        ('jienengchen/ViTamin-S', 'timm/vit_base_patch32_clip_224.openai')
    """
    import open_clip

    place = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "")
    return place.rpartition("/")[0]  # of "owner/name/" or "owner/name/file"


def _check(options: dict[str, Any]) -> None:
    for name in ("image_mean", "image_std"):
        colours = options[name]
        if colours is None:
            continue
        numbers = isinstance(colours, list | tuple) and all(isinstance(one, int | float) for one in colours)
        if not numbers or len(colours) != 3 or (name == "image_std" and min(colours) <= 0):
            kind = "positive numbers" if name == "image_std" else "numbers"
            raise ValueError(f"`{name}` must be three {kind}, one per colour, got {colours!r}")
    for name, choices in _CHOICES.items():
        if options[name] is not None:
            check_choice(name, options[name], choices)
