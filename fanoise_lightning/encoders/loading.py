"""Checkpoints of vision-language models: all weights or an error."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch

from fanoise_lightning.encoders.remote_code import refuse_code

__all__ = ["check_keys", "load_network"]


def load_network(
    model: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """The model with its language head, in eval mode, every weight from the checkpoint.

    The class with the head is loaded, not the inner model alone: the latter reads checkpoints in the newer
    key layout with the whole vision tower left at random, and says so in a printed report only.

    Args:
        model: a hub id or a folder.
        dtype: ``"float32"`` or ``"bfloat16"``.
        attn_implementation: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``; ``None``: transformers' own.
        load_in_4bit: quantise the weights (NF4) while they load; needs bitsandbytes and a GPU.
        trust_remote_code: run the code that comes with the checkpoint.

    Raises:
        ValueError: if weights are missing, left over, or of another shape, with their keys; or if the dtype
            is another.
        ImportError: if `load_in_4bit` is asked for without bitsandbytes.
    """
    from transformers import AutoModelForImageTextToText

    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"`dtype` must be 'float32' or 'bfloat16', got {dtype!r}")
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if load_in_4bit:
        options |= _four_bit()
    with nullcontext() if trust_remote_code else refuse_code(repr(model)):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(model, output_loading_info=True, **options)
    network, info = loaded
    check_keys(
        info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"], f"the checkpoint {model!r}"
    )
    return network.eval()


def _four_bit() -> dict[str, Any]:
    if find_spec("bitsandbytes") is None:
        raise ImportError(
            "`load_in_4bit` needs bitsandbytes, which is not installed: `pip install bitsandbytes`, or leave "
            "`load_in_4bit` out and take `dtype: bfloat16`"
        )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    # weights are quantised on their GPU, before Lightning hands out devices: one process a GPU
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", 0))}}


def check_keys(
    missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[Any], what: str
) -> None:
    """Refuse weights that did not all load; the language head is not used and may be absent.

    Raises:
        ValueError: with the keys, grouped.
    """
    groups = {
        "missing": [key for key in missing if "lm_head" not in key],
        # recomputed buffers, which old files carry
        "left over": [
            key
            for key in unexpected
            if not key.endswith((".inv_freq", ".position_ids")) and "lm_head" not in key
        ],
        "of another shape": [str(key) for key in mismatched],
    }
    found = [f"{len(keys)} {name} ({_list(sorted(keys))})" for name, keys in groups.items() if keys]
    if found:
        raise ValueError(f"{what} does not fit the model; weights: {'; '.join(found)}")


def _list(keys: list[str], most: int = 12) -> str:
    return ", ".join(keys[:most]) + (f", and {len(keys) - most} more" if len(keys) > most else "")
