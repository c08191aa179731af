"""LoRA through peft alone: transformers' own integration asks for a peft version of its own at run time."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from torch import nn

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["LoraOptions", "add_lora", "inject", "train_only_what_trains"]


class LoraOptions(TypedDict, total=False):
    """LoRA's settings; the defaults are the recipe of the paper.

    Attributes:
        r: the rank, 8.
        alpha: the scale is alpha / r; 64.
        dropout: 0.1.
        targets: a regular expression over module names, or a list of their endings; by default the linear
            layers of a generative model's language part, and of both towers of a two-tower model.
        dora: weight-decomposed LoRA; off.
        init: ``"default"`` or ``"gaussian"``.
    """

    r: int
    alpha: int
    dropout: float
    targets: str | list[str]
    dora: bool
    init: Literal["default", "gaussian"]


def add_lora(network: Any, lora: Mapping[str, Any], default_targets: str | None) -> None:
    """Freeze a model and put a fresh adapter on it.

    ``network.save_pretrained(folder)`` of a transformers model then writes the adapter alone, for
    :func:`~fanoise_lightning.encoders.saved_adapters.load_lora` or ``peft.PeftModel.from_pretrained``.

    Raises:
        ValueError: if a setting is unknown, if the targets or an entry of their list hit no module, or hit
            modules in which LoRA would silently do nothing.
    """
    from peft import LoraConfig

    if unknown := sorted(set(lora) - set(LoraOptions.__annotations__)):
        raise ValueError(
            f"`lora` has no {', '.join(unknown)}; it has {', '.join(LoraOptions.__annotations__)}"
        )
    targets = lora.get("targets", default_targets)
    if targets is None:
        raise ValueError("this model type has no default LoRA targets: set `lora.targets`")
    if (init := lora.get("init", "default")) not in ("default", "gaussian"):
        raise ValueError(f"`lora.init` must be 'default' or 'gaussian', got {init!r}")
    config = LoraConfig(
        r=lora.get("r", 8),
        lora_alpha=lora.get("alpha", 64),
        lora_dropout=lora.get("dropout", 0.1),
        target_modules=targets,
        use_dora=lora.get("dora", False),
        init_lora_weights=init == "default" or init,
    )
    _check_targets(network, targets)
    inject(network, config)


def train_only_what_trains(module: nn.Module) -> None:
    """Back to eval mode with every part of a module in train mode that holds nothing but frozen weights."""
    for part in module.modules():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()


def inject(network: Any, config: LoraConfig) -> None:
    """Put the adapter of a config on a model, whose other weights are frozen."""
    from peft import get_peft_model_state_dict, inject_adapter_in_model
    from transformers import PreTrainedModel

    of_transformers = isinstance(network, PreTrainedModel)
    if of_transformers:
        config.base_model_name_or_path = network.name_or_path
    inject_adapter_in_model(config, network)
    # an adapter's weights begin in the model's dtype: saved ones must not be rounded to it as they come
    _trainable_in_float32(network)
    if of_transformers:
        # What `save_pretrained` and gradient checkpointing ask for. transformers' own two methods raise when
        # peft is older than it would like.
        network._hf_peft_config_loaded = True
        network.active_adapters = partial(list, network.peft_config)
        network.get_adapter_state_dict = partial(get_peft_model_state_dict, network)


def _check_targets(network: nn.Module, targets: str | list[str]) -> None:
    names = [name for name, _ in network.named_modules()]
    try:
        hits = [name for name in names if _is_target(name, targets)]
    except re.error as error:
        raise ValueError(f"`lora.targets` {targets!r} is no regular expression: {error}") from error
    if not hits:
        raise ValueError(f"`lora.targets` {targets!r} names no module of {type(network).__name__}")
    entries = [] if isinstance(targets, str) else targets
    if idle := [entry for entry in entries if not any(_is_target(name, [entry]) for name in hits)]:
        endings = {name.rpartition(".")[2] for name in names}
        near = {ending for entry in idle for ending in difflib.get_close_matches(entry, endings)}
        raise ValueError(
            f"{', '.join(map(repr, idle))} of `lora.targets` names no module of {type(network).__name__}"
            + (f"; the nearest: {', '.join(sorted(near))}" if near else "")
        )
    blind = [
        name
        for name in hits
        if isinstance(network.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)
    ]
    if blind:
        raise ValueError(
            f"LoRA does nothing inside nn.MultiheadAttention, which reads its weights past the layer: leave "
            f"{', '.join(blind)} out of `lora.targets`"
        )


def _is_target(name: str, targets: str | list[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _trainable_in_float32(network: nn.Module) -> None:
    """At the recipe's learning rate most updates of a bfloat16 weight round to nothing."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
