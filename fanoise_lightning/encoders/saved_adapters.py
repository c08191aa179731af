"""LoRA adapters that peft or transformers saved."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fanoise_lightning.encoders._transformers import rename_keys
from fanoise_lightning.encoders.adapters import LoraOptions, add_lora, inject
from fanoise_lightning.encoders.hub import check_available
from fanoise_lightning.encoders.loading import check_keys

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["load_lora", "put_adapter"]

# What an ``adapter_config.json`` may set. Left out are settings that need more than the adapter's layers (an
# aLoRA's tokens, a router) or rearrange the model's, and `megatron_core`, which peft would import.
_SETTINGS = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias"),
    *("lora_bias", "use_rslora", "use_dora", "modules_to_save", "init_lora_weights", "eva_config"),
    *("trainable_token_indices", "target_parameters"),
}

# Other values change the model's own weights in ways that cannot be repeated from the adapter alone.
_INITS = (True, False, "gaussian", "orthogonal", "eva", "pissa", "olora")


def put_adapter(
    network: Any, model: str, lora: LoraOptions | None, adapter: str | None, default_targets: str | None
) -> None:
    """Put the adapter that a user asks for on a transformers model: a fresh one, a saved one, or none.

    Args:
        network: the model, with its language head if it has one.
        model: what `network` was loaded from.
        lora: settings of a fresh adapter.
        adapter: a hub id or a folder of a saved adapter.
        default_targets: the modules that a fresh adapter is put on unless `lora` names others.

    Raises:
        ValueError: as :func:`load_lora` and :func:`~fanoise_lightning.encoders.adapters.add_lora` do.
        OSError: if there is no such adapter.
    """
    if adapter is not None:
        load_lora(network, adapter, model)
    elif lora is not None:
        add_lora(network, lora, default_targets)


def load_lora(network: Any, adapter: str, model: str) -> None:
    """Put a saved LoRA adapter on a transformers model; training continues the adapter, the rest is frozen.

    The adapter may come from peft or transformers, with the key names of any version of the model. Every
    setting in its config is honoured, or refused by name. Nothing in the folder is run or imported.

    Args:
        network: the model, with its language head: adapters are saved under its key names.
        adapter: a hub id or a folder with ``adapter_config.json``.
        model: what `network` was loaded from.

    Raises:
        ValueError: if the adapter belongs to another model; if not all of its weights load, with their keys;
            or if its config or weights cannot be read or ask for something that is not supported.
        OSError: if there is no such adapter, or the hub is out of reach.
    """
    from peft.utils.error import NoMatchingPeftModuleError

    config = _read_config(adapter)
    _check_base(config.base_model_name_or_path, network.config.model_type, adapter, model)
    weights = _read_weights(adapter)
    try:
        _check_patterns(network, config)
        inject(network, config)
    except NoMatchingPeftModuleError as error:
        raise ValueError(f"the adapter {adapter!r} does not fit {model!r}: {error}") from error
    except (NotImplementedError, TypeError, ValueError, re.error) as error:
        raise ValueError(f"the adapter {adapter!r} cannot be put on {model!r}: {error}") from error
    _load_weights(network, weights, adapter, model)


def _read_config(adapter: str) -> LoraConfig:
    import peft
    from transformers.utils import cached_file

    check_available(adapter, "adapter")
    file = str(cached_file(adapter, "adapter_config.json"))
    try:
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise ValueError(f"{file} has the `peft_type` {kind!r}: only 'LORA' can be loaded")
    if (init := settings.get("init_lora_weights", True)) not in _INITS:
        raise ValueError(
            f"{file} has the `init_lora_weights` {init!r}, which changed the model's own weights: save the "
            "adapter with peft's `path_initial_model_for_weight_conversion`"
        )
    defaults = vars(peft.LoraConfig())
    others = {
        name: value
        for name, value in settings.items()
        # peft writes settings that are off too
        if name not in _SETTINGS and value and value != defaults.get(name)
    }
    if others:
        raise ValueError(
            f"{file} has settings that are not supported (peft {peft.__version__}): "
            f"{', '.join(f'{name}={value!r}' for name, value in sorted(others.items()))}"
        )
    known = {name: value for name, value in settings.items() if name in _SETTINGS}
    try:
        return peft.LoraConfig(**known | {"inference_mode": False})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def _read_weights(adapter: str) -> dict[str, Tensor]:
    from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
    from safetensors import SafetensorError

    files = [Path(adapter) / name for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)]
    if Path(adapter).is_dir() and not any(file.exists() for file in files):  # peft would look on the hub
        raise FileNotFoundError(f"{adapter!r} has no {SAFETENSORS_WEIGHTS_NAME}")
    try:
        return load_peft_weights(adapter, device="cpu")  # only tensors of a `.bin`: `weights_only`
    except (EOFError, RuntimeError, SafetensorError, UnpicklingError, ValueError) as error:
        raise ValueError(f"the weights of the adapter {adapter!r} cannot be read: {error}") from error


def _load_weights(network: Any, weights: Mapping[str, Tensor], adapter: str, model: str) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    what = f"the adapter {adapter!r}"
    expected = get_peft_model_state_dict(network, save_embedding_layers=False)
    renamed, taken = rename_keys(network, weights, expected)
    # peft expects every module that is saved whole; the language head may be absent
    whole = {key: expected[key] for key in expected.keys() - renamed.keys() if ".lora_" not in key}
    check_keys(whole, taken, (), what)
    try:
        result: Any = set_peft_model_state_dict(network, whole | renamed)
    except RuntimeError as error:  # weights of another shape
        raise ValueError(f"{what} does not fit {model!r}: {error}") from error
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    check_keys(trained.intersection(result.missing_keys), result.unexpected_keys, (), what)


def _check_patterns(network: nn.Module, config: LoraConfig) -> None:
    """Refuse a rank or scale for a module of another name, which peft would ignore with a warning."""
    from peft.utils.error import NoMatchingPeftModuleError

    names = [name for name, _ in (*network.named_modules(), *network.named_parameters())]
    patterns = sorted({*(config.rank_pattern or ()), *(config.alpha_pattern or ())})
    idle = [p for p in patterns if not any(re.match(rf"(.*\.)?({p})$", name) for name in names)]
    if idle:
        raise NoMatchingPeftModuleError(
            f"there are no modules for {', '.join(idle)} of its `rank_pattern` and `alpha_pattern`"
        )


def _check_base(base: str | None, model_type: str, adapter: str, model: str) -> None:
    """Two models can share every shape, so compare what the adapter was trained on, if that can be read."""
    from transformers import PreTrainedConfig

    if not base or base == model:
        return
    try:
        config, _ = PreTrainedConfig.get_config_dict(base)
    except OSError:  # moved, or out of reach: keys and shapes have to be enough
        return
    if config.get("model_type", model_type) != model_type:
        raise ValueError(
            f"the adapter {adapter!r} was trained on {base!r}, a {config['model_type']}; "
            f"{model!r} is a {model_type}"
        )
