"""LoRA adapters, put on a model by peft: transformers' own integration may refuse the installed peft."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from torch import nn

from fanoise_lightning._checks import check_choice, check_names
from fanoise_lightning.encoders._transformers import announce_adapter

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["LoraOptions", "add_lora", "check_one_adapter", "inject"]

Init = Literal["default", "gaussian"]


class LoraOptions(TypedDict, total=False):
    """The settings of LoRA; the defaults are the recipe of the paper.

    Attributes:
        r: the rank; 8.
        alpha: the update is scaled by alpha / r; 64.
        dropout: the dropout probability of the adapter's input; 0.1.
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
    init: Init


def check_one_adapter(lora: LoraOptions | None, adapter: str | None) -> None:
    """Raise ValueError if an encoder is given both of its options for an adapter."""
    if lora is not None and adapter is not None:
        raise ValueError("`lora` starts a fresh adapter and `adapter` continues a saved one: pass only one")


def add_lora(network: Any, lora: Mapping[str, Any], default_targets: str | None) -> None:
    """Freeze a model and put a fresh adapter on it.

    ``network.save_pretrained(folder)`` of a transformers model then writes only the adapter, for
    :func:`~fanoise_lightning.encoders.saved_adapters.load_lora` or ``peft.PeftModel.from_pretrained``.

    Raises:
        ValueError: if a setting is unknown, if the targets or an entry of their list match no module, or
            match modules in which LoRA would silently do nothing.
    """
    from peft import LoraConfig

    check_names(lora, LoraOptions.__annotations__, "`lora` setting")
    targets = lora.get("targets", default_targets)
    if targets is None:
        raise ValueError("this model type has no default LoRA targets: set `lora.targets`")
    init = lora.get("init", "default")
    check_choice("lora.init", init, Init)
    config = LoraConfig(
        r=lora.get("r", 8),
        lora_alpha=lora.get("alpha", 64),
        lora_dropout=lora.get("dropout", 0.1),
        target_modules=targets,
        use_dora=lora.get("dora", False),
        init_lora_weights=True if init == "default" else init,
    )
    _check_targets(network, targets)
    inject(network, config)


def inject(network: Any, config: LoraConfig) -> None:
    """Put the adapter that a config describes on a model, and freeze the model's other weights."""
    from peft import inject_adapter_in_model
    from transformers import PreTrainedModel

    of_transformers = isinstance(network, PreTrainedModel)
    if of_transformers:
        config.base_model_name_or_path = network.name_or_path
    inject_adapter_in_model(config, network)
    # adapter weights start in the model's dtype: saved ones must not be rounded to it when they are loaded
    _trainable_in_float32(network)
    if of_transformers:
        announce_adapter(network)


def _check_targets(network: nn.Module, targets: str | list[str]) -> None:
    names = [name for name, _ in network.named_modules()]
    try:
        hits = [name for name in names if _is_target(name, targets)]
    except re.error as error:
        raise ValueError(f"`lora.targets` {targets!r} is not a regular expression: {error}") from error
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
            "LoRA does nothing inside nn.MultiheadAttention, which uses the weights of its layers without "
            f"calling them: leave {', '.join(blind)} out of `lora.targets`"
        )


def _is_target(name: str, targets: str | list[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _trainable_in_float32(network: nn.Module) -> None:
    """At the recipe's learning rate most updates of a bfloat16 weight would round to nothing."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
