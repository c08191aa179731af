"""What the encoders need from transformers beyond its documented API, in one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

__all__ = ["announce_adapter", "rename_keys", "without_questions"]


def announce_adapter(network: Any) -> None:
    """Tell a transformers model that peft injected an adapter: ``save_pretrained`` then writes the adapter.

    ``PreTrainedModel.add_adapter`` does the same, but refuses peft versions older than it would like.
    """
    from peft import get_peft_model_state_dict

    network._hf_peft_config_loaded = True
    # the model's own two methods check the version of peft too
    network.active_adapters = partial(list, network.peft_config)
    network.get_adapter_state_dict = partial(get_peft_model_state_dict, network)


def rename_keys(
    network: Any, weights: Mapping[str, Tensor], expected: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Saved adapter weights under the key names of the installed version of a model.

    Qwen2-VL, Qwen2.5-VL and LLaVA-NeXT have changed their key names since adapters were published for them,
    and an adapter for the model without its language head lacks a prefix. transformers knows these changes;
    peft asks it for some model types only, and Qwen's are not among them.

    Args:
        network: the model, with the adapter injected.
        weights: what was saved, by key.
        expected: the weights of the adapter in `network`, by key.

    Returns:
        The renamed weights, and the saved keys whose new name was already taken.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    rules = [rule for rule in get_model_conversion_mapping(network) if isinstance(rule, WeightRenaming)]
    renamed: dict[str, Tensor] = {}
    taken = []
    for key, weight in weights.items():
        name = key.removeprefix("base_model.model.")
        name, _ = rename_source_key(name, rules, [], network.base_model_prefix, expected)
        if name in renamed:
            taken.append(key)
        renamed[name] = weight
    return renamed, taken


@contextmanager
def without_questions() -> Iterator[None]:
    """Let transformers refuse the Python code of a model right away, instead of asking at the terminal."""
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE  # seconds to wait for an answer; 0 does not ask
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before
