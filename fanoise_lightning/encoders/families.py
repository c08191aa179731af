"""A table of the vision-language families: what each needs beyond the common forward."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from fanoise_lightning.encoders.hub import check_available
from fanoise_lightning.encoders.remote_code import is_refused

__all__ = ["FAMILIES", "Family", "find_family"]

_ATTENTION_AND_MLP = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


@dataclass(frozen=True)
class Family:
    """One model type.

    Attributes:
        name: its usual name.
        placeholder: what stands for an image in the text that its processor reads; ``{i}`` is the image's
            number, from 1. Empty for a model with Python code of its own, whose processor knows it.
        image_options: which of ``image_size``, ``max_pixels`` and ``num_crops`` it takes.
        vision: the modules of the inner model that are not the language model.
        lora_targets: a regular expression over the module names of the language part; ``None`` if the user
            has to give one.
        reserved: texts that its processor takes for an image or a video.
        bare_placeholder: the placeholder of ``positions="vlm2vec"``; ``None`` if there is no such recipe.
        module: a module to import first, which registers the family with transformers' Auto classes.
    """

    name: str
    placeholder: str
    image_options: tuple[str, ...] = ("image_size",)
    vision: tuple[str, ...] = ()
    lora_targets: str | None = None
    reserved: tuple[str, ...] = ()
    bare_placeholder: str | None = None
    module: str | None = None


def _qwen(name: str, bare_placeholder: str | None = None) -> Family:
    return Family(
        name,
        # M-RoPE would read two images with nothing between them as one: the placeholders keep them apart
        placeholder="<|vision_start|><|image_pad|><|vision_end|>",
        image_options=("image_size", "max_pixels"),
        vision=("visual",),
        lora_targets=_ATTENTION_AND_MLP,
        reserved=("<|image_pad|>", "<|video_pad|>"),
        bare_placeholder=bare_placeholder,
    )


FAMILIES = {
    "qwen2_vl": _qwen("Qwen2-VL", bare_placeholder="<|image_pad|>"),
    "qwen2_5_vl": _qwen("Qwen2.5-VL"),
    "qwen3_vl": _qwen("Qwen3-VL"),
    "llava_next": Family(
        "LLaVA-NeXT",
        placeholder="<image>",
        vision=("vision_tower", "multi_modal_projector", "image_newline"),
        lora_targets=_ATTENTION_AND_MLP,
        reserved=("<image>",),
    ),
    "phi3_v": Family(
        "Phi-3.5-V",
        placeholder="<|image_{i}|>",
        image_options=("num_crops",),
        vision=("vision_embed_tokens",),
        lora_targets=r".*\blayers\.\d+\.(self_attn\.(qkv_proj|o_proj)|mlp\.(gate_up_proj|down_proj))",
        module="fanoise_lightning.encoders.phi3_vision",
    ),
}


def find_family(model: str, trust_remote_code: bool = False) -> Family:
    """The family of a checkpoint, from its config.

    Args:
        model: a hub id or a folder.
        trust_remote_code: whether a model type that is not in the table may bring its own code.

    Raises:
        ValueError: if the model type is unknown, with the known ones, or needs code that must not run.
        OSError: if there is no such model.
    """
    from transformers import PreTrainedConfig

    check_available(model)
    config, _ = PreTrainedConfig.get_config_dict(model)
    model_type = config.get("model_type")
    if model_type in FAMILIES:
        family = FAMILIES[model_type]
        if family.module is not None:
            import_module(family.module)
        return family
    known = ", ".join(sorted(FAMILIES))
    if "auto_map" not in config:
        raise ValueError(f"{model!r} has the model type {model_type!r}; the known ones: {known}")
    if trust_remote_code and is_refused():
        raise ValueError(
            f"the checkpoint asks to run the Python code that comes with {model!r}. Read it, then pass "
            "`load_from_checkpoint(..., trust_remote_code=True)`"
        )
    if not trust_remote_code:
        raise ValueError(
            f"{model!r} has the model type {model_type!r}, which needs Python code from its own folder or "
            f"repository. Read it, then pass `trust_remote_code=True`. Model types without such code: {known}"
        )
    return Family(str(model_type), placeholder="")
