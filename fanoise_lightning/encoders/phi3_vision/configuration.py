"""The configuration of Phi-3.5-vision, read from the published ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import CLIPVisionConfig, Phi3Config
from transformers.configuration_utils import SubConfigSpec

__all__ = ["Phi3VConfig"]

# The tower that `img_processor.model_name = "openai/clip-vit-large-patch14-336"` names.
CLIP_LARGE_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}

# The image layout that Phi-3.5-vision was trained with, the only one implemented here.
SUPPORTED_LAYOUT: dict[str, dict[str, Any]] = {
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "img_processor": {"name": "clip_vision_model", "layer_idx": -2, "type_feature": "patch"},
}


class Phi3VConfig(Phi3Config):
    """A Phi-3 language model with a CLIP tower in front of it (``model_type`` "phi3_v").

    Reads the published ``config.json`` (``rope_scaling`` of type "su", ``embd_layer``, ``img_processor``).
    That file names its image tower without describing it; here ``vision_config`` describes it, by default as
    CLIP ViT-L/14 at 336 pixels.

    Args:
        vision_config: the CLIP vision tower, as a dictionary or a ``CLIPVisionConfig``.
        embd_layer: how images are laid out; anything but the published layout is refused by the model.
        img_processor: the published description of the tower; its ``image_dim_out`` must equal
            ``vision_config.hidden_size``.
        **kwargs: everything that ``Phi3Config`` takes.

    Example:
        >>> Phi3VConfig().vision_config.hidden_size
        1024
    """

    model_type = "phi3_v"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(config_class=CLIPVisionConfig, init_kwargs=CLIP_LARGE_336)
    }

    vision_config: Any = None  # given as a dictionary or None, kept as a CLIPVisionConfig
    embd_layer: dict | None = None
    img_processor: dict | None = None
    max_position_embeddings: int = 131072
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        # "su" is the old name of longrope. transformers renames it too, but only after the step that copies
        # `original_max_position_embeddings` if it finds longrope.
        if kwargs.get("rope_scaling"):
            kwargs["rope_scaling"] = _rename_su(kwargs["rope_scaling"])
        if self.rope_parameters:
            self.rope_parameters = _rename_su(self.rope_parameters)
        super().__post_init__(**kwargs)

    def check_layout(self) -> None:
        """Refuse a configuration that this implementation would compute wrongly.

        Raises:
            ValueError: for an image layout other than the published one, or when ``img_processor`` and
                ``vision_config`` disagree.
        """
        for name, supported in SUPPORTED_LAYOUT.items():
            for key, value in (getattr(self, name) or {}).items():
                if key in supported and value != supported[key]:
                    raise ValueError(f"{name}.{key} is {value!r}; only {supported[key]!r} is implemented.")
        width = (self.img_processor or {}).get("image_dim_out", self.vision_config.hidden_size)
        if width != self.vision_config.hidden_size:
            raise ValueError(
                f"img_processor.image_dim_out is {width} but vision_config.hidden_size is "
                f"{self.vision_config.hidden_size}: this checkpoint has another image tower than CLIP "
                "ViT-L/14-336; describe it with vision_config=CLIPVisionConfig(...)."
            )
        if (self.vision_config.image_size, self.vision_config.patch_size) != (336, 14):
            raise ValueError(
                f"vision_config has image_size {self.vision_config.image_size} and patch_size "
                f"{self.vision_config.patch_size}; the HD transform needs crops of 336 pixels, patches of 14."
            )


def _rename_su(rope: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with "longrope" for "su", whichever of the two keys names the type."""
    return {k: "longrope" if k in ("type", "rope_type") and v == "su" else v for k, v in rope.items()}
