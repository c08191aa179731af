"""Loading checkpoints of transformers: every weight or an error."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, Literal

import torch

from fanoise_lightning._checks import check_choice
from fanoise_lightning.encoders.remote_code import refuse_code

__all__ = ["Dtype", "check_keys", "four_bit", "listed", "load_network", "load_processor"]

Dtype = Literal["float32", "bfloat16"]


def load_network(
    loader: Any, model: str, dtype: Dtype, trust_remote_code: bool = False, **options: Any
) -> Any:
    """A model in eval mode, with every weight from its checkpoint.

    Args:
        loader: a model class of transformers, or one of its Auto classes. Vision-language models are loaded
            with their language head: the inner model alone reads checkpoints in the newer key layout with
            the whole vision tower left at random, and only says so in a printed report.
        model: a hub id or a folder.
        dtype: the dtype of the weights.
        trust_remote_code: run the Python code that comes with the checkpoint.
        **options: passed on to ``from_pretrained``.

    Raises:
        ValueError: if weights are missing, left over, or of another shape, with their keys; if the dtype is
            unknown; or if the model needs Python code that must not run.
        OSError: if there is no such model.
    """
    check_choice("dtype", dtype, Dtype)
    with nullcontext() if trust_remote_code else refuse_code(repr(model)):
        network, info = loader.from_pretrained(
            model,
            output_loading_info=True,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            **options,
        )
    keys = (info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    check_keys(*keys, f"the checkpoint {model!r}")
    return network.eval()


def load_processor(model: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer and the image processor that come with a checkpoint.

    Raises:
        ValueError: if they need Python code that must not run.
        OSError: if there is no such model.
    """
    from transformers import AutoProcessor

    with nullcontext() if trust_remote_code else refuse_code(repr(model)):
        return AutoProcessor.from_pretrained(model, trust_remote_code=trust_remote_code)


def four_bit() -> dict[str, Any]:
    """The options of :func:`load_network` that quantise the weights to 4 bits (NF4) while they load.

    Raises:
        ImportError: if bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ImportError(
            "`load_in_4bit` needs bitsandbytes, which is not installed: `pip install bitsandbytes`, or leave "
            "`load_in_4bit` out and pass `dtype: bfloat16`"
        )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    # weights are quantised on their GPU before Lightning assigns devices: one process per GPU
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", 0))}}


def check_keys(
    missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[Any], what: str
) -> None:
    """Refuse weights that did not all load; the language head is not used and may be absent.

    Raises:
        ValueError: with the keys, grouped by what is wrong.
    """
    groups = {
        "missing": [key for key in missing if "lm_head" not in key],
        # old files hold buffers that are computed nowadays
        "left over": [
            key
            for key in unexpected
            if not key.endswith((".inv_freq", ".position_ids")) and "lm_head" not in key
        ],
        "of another shape": [str(key) for key in mismatched],
    }
    found = [f"{len(keys)} {name} ({listed(sorted(keys), 12)})" for name, keys in groups.items() if keys]
    if found:
        raise ValueError(f"{what} does not fit the model; weights: {'; '.join(found)}")


def listed(names: Sequence[str], most: int) -> str:
    """Names for a message, and how many more there are than `most`.

    Example:
        >>> listed(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
