"""LoRA through transformers' own peft integration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from torch import nn

from fanoise_lightning.encoders.loading import check_keys

__all__ = ["LoraOptions", "add_lora", "load_lora", "train_only_what_trains"]


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

    Raises:
        ValueError: if a setting is unknown, if the targets hit no module, or modules in which LoRA would
            silently do nothing.
    """
    from peft import LoraConfig, inject_adapter_in_model

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
    if hasattr(network, "add_adapter"):
        network.add_adapter(config)
    else:  # no transformers model
        inject_adapter_in_model(config, network)
    _trainable_in_float32(network)


def load_lora(network: Any, adapter: str, model: str) -> None:
    """Put a saved adapter on a transformers model; the adapter trains on, the rest is frozen.

    Args:
        network: the model, with its language head: adapters are saved under its key names.
        adapter: a hub id or a folder with ``adapter_config.json``.
        model: what `network` was loaded from.

    Raises:
        ValueError: if the adapter is one for another model, or not all of its weights load, with their keys.
    """
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(adapter)
    config.inference_mode = False
    _check_base(config.base_model_name_or_path, network.config.model_type, adapter, model)
    # peft saves DoRA's magnitudes under a shorter name, which `load_adapter` does not know
    weights = {
        re.sub(r"(\.lora_magnitude_vector)$", r"\1.weight", key): value
        for key, value in load_peft_weights(adapter, device="cpu").items()
    }
    try:
        network.add_adapter(config)
        _trainable_in_float32(network)  # before the weights come: they would be rounded to the base's dtype
        info = network.load_adapter(
            adapter_name="default",
            peft_config=config,
            adapter_state_dict=weights,
            is_trainable=True,
            hotswap=True,
        )
    except (RuntimeError, ValueError) as error:  # no such modules here, or weights of another shape
        raise ValueError(f"the adapter {adapter!r} does not fit {model!r}: {error}") from error
    check_keys(info.missing_keys, info.unexpected_keys, info.mismatched_keys, f"the adapter {adapter!r}")


def train_only_what_trains(module: nn.Module) -> None:
    """Back to eval mode with every part of a module in train mode that holds nothing but frozen weights."""
    for part in module.modules():
        weights = list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            part.eval()


def _check_targets(network: nn.Module, targets: str | list[str]) -> None:
    hits = [name for name, _ in network.named_modules() if _is_target(name, targets)]
    if not hits:
        raise ValueError(f"`lora.targets` {targets!r} names no module of {type(network).__name__}")
    idle = [
        name
        for name in hits
        if isinstance(network.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)
    ]
    if idle:
        raise ValueError(
            f"LoRA does nothing inside nn.MultiheadAttention, which reads its weights past the layer: leave "
            f"{', '.join(idle)} out of `lora.targets`"
        )


def _is_target(name: str, targets: str | list[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _check_base(base: str | None, model_type: str, adapter: str, model: str) -> None:
    """Two models can share every shape: what the adapter was trained on counts too, where it can be read."""
    from transformers import PreTrainedConfig

    if not base or base == model:
        return
    try:
        config, _ = PreTrainedConfig.get_config_dict(base)
    except OSError:  # moved, or out of reach: the keys and shapes must do
        return
    if config.get("model_type", model_type) != model_type:
        raise ValueError(
            f"the adapter {adapter!r} was trained on {base!r}, a {config['model_type']}; "
            f"{model!r} is a {model_type}"
        )


def _trainable_in_float32(network: nn.Module) -> None:
    """At the recipe's learning rate most updates of a bfloat16 weight round to nothing."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
