"""A table of the two-tower families from transformers: how each embeds a text and an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning.encoders.hub import check_available

__all__ = ["TWO_TOWER_FAMILIES", "TwoTowerFamily", "find_two_tower_family"]

Tower = Callable[..., Tensor]
"""(network, **inputs) -> one vector per row."""


def _text_features(network: Any, **inputs: Tensor) -> Tensor:
    return network.get_text_features(**inputs).pooler_output


def _image_features(network: Any, **inputs: Tensor) -> Tensor:
    return network.get_image_features(**inputs).pooler_output


def _blip_text(network: Any, **inputs: Tensor) -> Tensor:
    return network.text_proj(network.text_encoder(**inputs).last_hidden_state[:, 0])


def _blip_image(network: Any, **inputs: Tensor) -> Tensor:
    return network.vision_proj(network.vision_model(**inputs).last_hidden_state[:, 0])


def _blip2_text(network: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    embedded = network.embeddings(input_ids=input_ids)
    hidden = network.qformer(query_embeds=embedded, query_length=0, attention_mask=attention_mask)
    return network.text_projection(hidden.last_hidden_state[:, 0])


def _blip2_image(network: Any, **inputs: Tensor) -> Tensor:
    seen = network.vision_model(**inputs).last_hidden_state
    queries = network.query_tokens.expand(len(seen), -1, -1)
    hidden = network.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
    return F.normalize(network.vision_projection(hidden).float(), dim=-1).mean(dim=1)


@dataclass(frozen=True)
class TwoTowerFamily:
    """One model type.

    Attributes:
        network: the name of its class in transformers.
        dim: the dotted path of D in its config.
        lora_targets: a regular expression over module names: attention and MLP of both towers' blocks.
        unused: regular expressions of parameters that take no part in an embedding.
        text: its text tower.
        image: its image tower.
        siglip: whether texts are read as in SigLIP's training: in lower case, padded to one length, without a
            mask.
        positions: the dotted path, in its config, of how many tokens the text tower takes.
    """

    network: str
    dim: str
    lora_targets: str
    unused: tuple[str, ...]
    text: Tower = _text_features
    image: Tower = _image_features
    siglip: bool = False
    positions: str = "text_config.max_position_embeddings"


_TEMPERATURE = ("logit_scale", "logit_bias", "temperature")
_BLOCKS = r"(text|vision)_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
_BERT_BLOCK = r"attention\.(self\.(query|key|value)|output\.dense)|intermediate\.dense|output\.dense"
_BLIP_BLOCKS = r"vision_model\.encoder\.layers\.\d+\.(self_attn\.(qkv|projection)|mlp\.fc[12])"

TWO_TOWER_FAMILIES = {
    "clip": TwoTowerFamily("CLIPModel", "projection_dim", _BLOCKS, _TEMPERATURE),
    # the image tower's head holds an nn.MultiheadAttention, in which LoRA does nothing
    "siglip": TwoTowerFamily(
        "SiglipModel", "text_config.projection_size", _BLOCKS, _TEMPERATURE, siglip=True
    ),
    "siglip2": TwoTowerFamily(
        "Siglip2Model", "text_config.projection_size", _BLOCKS, _TEMPERATURE, siglip=True
    ),
    # the image tower is an EfficientNet: convolutions, no blocks
    "align": TwoTowerFamily(
        "AlignModel",
        "projection_dim",
        rf"text_model\.encoder\.layer\.\d+\.({_BERT_BLOCK})",
        (*_TEMPERATURE, r"text_model\.pooler"),
    ),
    "blip": TwoTowerFamily(
        "BlipForImageTextRetrieval",
        "image_text_hidden_size",
        rf"{_BLIP_BLOCKS}|text_encoder\.encoder\.layer\.\d+\.({_BERT_BLOCK})",
        ("itm_head", r"text_encoder\.encoder\.layer\.\d+\.crossattention"),
        _blip_text,
        _blip_image,
    ),
    "blip-2": TwoTowerFamily(
        "Blip2ForImageTextRetrieval",
        "image_text_hidden_size",
        rf"{_BLIP_BLOCKS}|qformer\.encoder\.layer\.\d+\.((cross)?attention\.(attention\.(query|key|value)"
        r"|output\.dense)|(intermediate|output)(_query)?\.dense)",
        ("itm_head",),
        _blip2_text,
        _blip2_image,
        positions="qformer_config.max_position_embeddings",
    ),
}


def find_two_tower_family(model: str) -> TwoTowerFamily:
    """The family of a checkpoint, from its config.

    Args:
        model: a hub id or a folder.

    Raises:
        ValueError: if the model type is unknown, with the known ones.
        OSError: if there is no such model.
    """
    from transformers import PreTrainedConfig

    check_available(model)
    config, _ = PreTrainedConfig.get_config_dict(model)
    model_type = config.get("model_type")
    if model_type not in TWO_TOWER_FAMILIES:
        known = ", ".join(TWO_TOWER_FAMILIES)
        raise ValueError(f"{model!r} has the model type {model_type!r}; two-tower model types: {known}")
    return TWO_TOWER_FAMILIES[model_type]
