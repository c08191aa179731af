"""The JSON files that sentence-transformers reads beside a model of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["add_prompts", "add_rotation", "write_generative", "write_two_towers"]

# The oldest names: servers such as vLLM look for them word for word, and newer libraries know them too.
_TRANSFORMER = "sentence_transformers.models.Transformer"
_POOLING = "sentence_transformers.models.Pooling"
_NORMALIZE = "sentence_transformers.models.Normalize"
_DENSE = "sentence_transformers.models.Dense"

_MODES = (
    *("cls_token", "mean_tokens", "max_tokens"),
    *("mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"),
)
_CONFIG = "config_sentence_transformers.json"
_VERSION = "6.2.0"  # the files are those that this one reads; an older one warns


def write_generative(
    folder: Path, dim: int, pooling: str, max_length: int | None, modalities: list[str]
) -> None:
    """Let a vision-language model be read with its chat template, pooling and normalisation.

    Args:
        folder: holds the model, the processor and the chat template.
        dim: D.
        pooling: ``"lasttoken"`` or ``"mean_tokens"``.
        max_length: the tokens at which texts are cut.
        modalities: ``"text"``, ``"image"`` and ``"message"``, or some of them.
    """
    method = {"method": "forward", "method_output_name": "last_hidden_state"}
    config = {name: dict(method) for name in modalities}
    if "message" in config:
        config["message"]["format"] = "structured"
    _write(
        folder / "sentence_bert_config.json",
        {
            **({} if max_length is None else {"max_seq_length": max_length}),
            "transformer_task": "feature-extraction",
            "modality_config": config,
            "module_output_name": "token_embeddings",
        },
    )
    flags = {f"pooling_mode_{mode}": mode == pooling for mode in _MODES}
    pooling_config = {"word_embedding_dimension": dim, **flags, "include_prompt": True}
    (folder / "1_Pooling").mkdir()
    _write(folder / "1_Pooling" / "config.json", pooling_config)
    _write_modules(folder, [("", _TRANSFORMER), ("1_Pooling", _POOLING), ("2_Normalize", _NORMALIZE)])


def write_two_towers(folder: Path, max_length: int, processing: Mapping[str, Any], lower: bool) -> None:
    """Let a two-tower model be read by its features.

    Args:
        folder: holds the model and the processor.
        max_length: the tokens at which texts are cut.
        processing: arguments of the processor's calls, by ``"text"`` and ``"image"``.
        lower: whether texts are lower-cased.
    """
    methods = {
        name: {"method": f"get_{name}_features", "method_output_name": "pooler_output"}
        for name in ("text", "image")
    }
    _write(
        folder / "sentence_bert_config.json",
        {
            "max_seq_length": max_length,
            **({"do_lower_case": True} if lower else {}),
            "transformer_task": "feature-extraction",
            "modality_config": methods,
            "module_output_name": "sentence_embedding",
            **({"processing_kwargs": processing} if processing else {}),
        },
    )
    _write_modules(folder, [("", _TRANSFORMER), ("1_Normalize", _NORMALIZE)])


def add_rotation(folder: Path, rotation: Tensor) -> None:
    """Have unit vectors rotated.

    Args:
        folder: one that :func:`write_generative` or :func:`write_two_towers` has completed.
        rotation: (D, D), as of :func:`~fanoise_lightning.export.rotation.spectral_rotation`.
    """
    listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules = [(module["path"], module["type"]) for module in listed]
    _list_modules(folder, [*modules, (f"{len(modules)}_Dense", _DENSE)])
    config = {
        "in_features": len(rotation),
        "out_features": len(rotation),
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    dense = folder / f"{len(modules)}_Dense"
    _write(dense / "config.json", config)
    save_file({"linear.weight": rotation.T.contiguous()}, dense / "model.safetensors")


def add_prompts(folder: Path, prompts: Mapping[str, str]) -> None:
    """Let texts be embedded with an instruction by its name, ``encode(texts, prompt_name=...)``.

    Args:
        folder: one that :func:`write_generative` or :func:`write_two_towers` has completed.
        prompts: instructions by name; none of them is used by default.
    """
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    _write(folder / _CONFIG, config | {"prompts": dict(prompts)})


def _list_modules(folder: Path, modules: list[tuple[str, str]]) -> None:
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": kind}
        for number, (path, kind) in enumerate(modules)
    ]
    _write(folder / "modules.json", listed)
    for path, _ in modules:
        (folder / path).mkdir(exist_ok=True)


def _write_modules(folder: Path, modules: list[tuple[str, str]]) -> None:
    _list_modules(folder, modules)
    versions = {
        "sentence_transformers": _VERSION,
        "transformers": transformers.__version__,
        "pytorch": torch.__version__,
    }
    _write(
        folder / _CONFIG,
        {
            "__version__": versions,
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
