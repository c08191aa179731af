"""Two-tower encoders from transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from fanoise_lightning.encoders.adapters import LoraOptions, add_lora
from fanoise_lightning.encoders.loading import check_keys
from fanoise_lightning.encoders.plain_text import PlainTexts
from fanoise_lightning.encoders.remote_code import refuse_code
from fanoise_lightning.encoders.saved_adapters import load_lora
from fanoise_lightning.encoders.towers import TowerCollate, TwoTowers

__all__ = ["TwoTowerEncoder"]

Tower = Callable[..., Tensor]
"""(network, **inputs) -> one vector a row."""


def _text_features(network: Any, **inputs: Tensor) -> Tensor:
    features = network.get_text_features(**inputs)
    return getattr(features, "pooler_output", features)  # a plain tensor before transformers 5


def _image_features(network: Any, **inputs: Tensor) -> Tensor:
    features = network.get_image_features(**inputs)
    return getattr(features, "pooler_output", features)


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
class _Family:
    """One model type.

    Attributes:
        network: the name of its class in transformers.
        dim: where its config says D.
        lora_targets: a regular expression over module names: attention and MLP of both towers' blocks.
        unused: regular expressions of parameters that take no part in an embedding.
        text: its text tower.
        image: its image tower.
        siglip: texts are read as SigLIP was trained: in lower case, padded to one length, without a mask.
        positions: where its config says how many tokens the text tower takes.
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

_FAMILIES = {
    "clip": _Family("CLIPModel", "projection_dim", _BLOCKS, _TEMPERATURE),
    # the image tower's head holds an nn.MultiheadAttention, in which LoRA does nothing
    "siglip": _Family("SiglipModel", "text_config.projection_size", _BLOCKS, _TEMPERATURE, siglip=True),
    "siglip2": _Family("Siglip2Model", "text_config.projection_size", _BLOCKS, _TEMPERATURE, siglip=True),
    # the image tower is an EfficientNet: convolutions, no blocks
    "align": _Family(
        "AlignModel",
        "projection_dim",
        rf"text_model\.encoder\.layer\.\d+\.({_BERT_BLOCK})",
        (*_TEMPERATURE, r"text_model\.pooler"),
    ),
    "blip": _Family(
        "BlipForImageTextRetrieval",
        "image_text_hidden_size",
        rf"{_BLIP_BLOCKS}|text_encoder\.encoder\.layer\.\d+\.({_BERT_BLOCK})",
        ("itm_head", r"text_encoder\.encoder\.layer\.\d+\.crossattention"),
        _blip_text,
        _blip_image,
    ),
    "blip-2": _Family(
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


class TwoTowerEncoder(TwoTowers):
    """CLIP, SigLIP, SigLIP 2, ALIGN, BLIP or BLIP-2 from transformers, with its own processor.

    A sample with a text and an image is embedded as the sum of both towers' unit vectors. A text longer than
    the tower takes is cut and keeps its end token, as CLIP does (after 77 tokens; SigLIP after 64); the
    number is printed once. What differs between the families:

    - SigLIP and SigLIP 2: texts are always in lower case, padded to the full length and read without a mask,
      as they were trained; shorter padding gives other vectors.
    - BLIP and BLIP-2: the towers of the retrieval model (``Blip(2)ForImageTextRetrieval``), without its
      matching head. BLIP-2 has a vector for each of its query tokens and scores a pair by the best of them;
      here the vector of an image is the mean of their unit vectors: a pair's cosine is the mean of those
      scores, divided by the length of that mean.
    - ALIGN: the image tower has BatchNorm. In training an embedding depends on the other images of its
      batch, per GPU unless the trainer has ``sync_batchnorm: true``, and per chunk with gradient caching,
      whose gradients are then not those of the whole batch. With ``lora`` or ``adapter`` the image tower is
      frozen and uses its stored statistics, as in evaluation.

    Args:
        model: a hub id or a folder.
        lora: settings of a fresh adapter, see :class:`LoraOptions`; ``{}`` for the paper's. By default it is
            put on the attention and the MLP of every block of both towers (ALIGN: of the text tower). Then
            nothing else is trained; without, everything is.
        adapter: a hub id or a folder of a saved adapter, which is trained on.
        gradient_checkpointing: trade a second forward pass for memory.
        dtype: of the frozen weights; an adapter stays in float32. With ``"bfloat16"`` train in Lightning's
            ``precision: bf16-mixed``.
        split_special_tokens: read the names of special tokens in texts, such as ``[SEP]``, as text; ``False``
            lets them act.

    Raises:
        ValueError: if the model type is unknown, if the model needs Python code of its own, if weights or
            adapter weights do not all load, or both `lora` and `adapter` are given.

    Example:
        >>> encoder = TwoTowerEncoder("openai/clip-vit-base-patch16")                   # doctest: +SKIP
        >>> batch = encoder.collate([Sample("a cat"), Sample(image=image)])           # doctest: +SKIP
        >>> encoder(**batch).shape                                                      # doctest: +SKIP
        torch.Size([2, 512])
    """

    def __init__(
        self,
        model: str,
        *,
        lora: LoraOptions | None = None,
        adapter: str | None = None,
        gradient_checkpointing: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        split_special_tokens: bool = True,
    ) -> None:
        super().__init__()
        if lora is not None and adapter is not None:
            raise ValueError(
                "`lora` starts a fresh adapter and `adapter` continues a saved one: give one of them"
            )
        self.model, self.lora, self.adapter = model, lora, adapter
        self.gradient_checkpointing, self.dtype = gradient_checkpointing, dtype
        self.split_special_tokens = split_special_tokens
        self._family = _find_family(model)
        self.network = _load_network(model, self._family, dtype)
        self.embedding_dim = _read(self.network.config, self._family.dim)
        if gradient_checkpointing:
            self.network.gradient_checkpointing_enable({"use_reentrant": False})
            # reentrant checkpointing alone needs gradients at the embeddings; BLIP's fail with them
            self.network.disable_input_require_grads()
        if adapter is not None:
            load_lora(self.network, adapter, model)
        elif lora is not None:
            add_lora(self.network, lora, self._family.lora_targets)
        self.freeze(self.network, self._family.unused)
        self.collate: _ProcessorCollate = _ProcessorCollate(
            model,
            _read(self.network.config, self._family.positions),
            self._family.siglip,
            split_special_tokens,
        )
        self.report(model, self.collate.context_length)
        self.eval()  # as transformers hands models out; a fresh adapter's dropout is on

    def encode_text(self, **inputs: Tensor) -> Tensor:
        return self._family.text(self.network, **inputs)

    def encode_image(self, **inputs: Tensor) -> Tensor:
        inputs["pixel_values"] = inputs["pixel_values"].to(self.network.dtype)
        return self._family.image(self.network, **inputs)


class _ProcessorCollate(TowerCollate):
    """The tokenizer and the image processor that come with a checkpoint."""

    def __init__(self, model: str, positions: int, siglip: bool, split_special_tokens: bool) -> None:
        from transformers import AutoProcessor

        with refuse_code(repr(model)):
            processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
        self.tokenizer, self.image_processor = processor.tokenizer, processor.image_processor
        # positions count from the left; SigLIP 2's tokenizer pads there unless its checkpoint says otherwise
        self.tokenizer.padding_side = "right"
        size = self.image_processor.size or {}
        super().__init__("shortest_edge" in size and getattr(self.image_processor, "do_center_crop", False))
        # a tokenizer may know a shorter limit; without one it says 1e30
        self.context_length = min(positions, self.tokenizer.model_max_length)
        self.siglip = siglip
        self.read = PlainTexts(self.tokenizer) if split_special_tokens else self.tokenizer

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        tokens = self.read(
            # SigLIP 2 at a fixed resolution comes with a tokenizer that keeps capitals
            [text.lower() for text in texts] if self.siglip else texts,
            padding="max_length" if self.siglip else True,
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )
        names = ("input_ids",) if self.siglip else ("input_ids", "attention_mask")
        return {name: tokens[name] for name in names}

    def transform(self, images: list[Image]) -> dict[str, Tensor]:
        # not the processor's own tensors: in a worker these are stacked in the memory that it shares with the
        # main process, not stacked and then copied there
        return {
            name: default_collate([torch.as_tensor(value) for value in values])
            for name, values in self.image_processor(images=images).items()
        }


def _find_family(model: str) -> _Family:
    from transformers import PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(model)
    model_type = config.get("model_type")
    if model_type not in _FAMILIES:
        raise ValueError(
            f"{model!r} has the model type {model_type!r}; two-tower encoders know {', '.join(_FAMILIES)}"
        )
    return _FAMILIES[model_type]


def _load_network(model: str, family: _Family, dtype: str) -> Any:
    """The network in eval mode, every weight from the checkpoint."""
    import transformers

    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"`dtype` must be 'float32' or 'bfloat16', got {dtype!r}")
    loader = getattr(transformers, family.network)
    options = {"dtype": getattr(torch, dtype), "trust_remote_code": False}
    with refuse_code(repr(model)):
        network, info = loader.from_pretrained(model, output_loading_info=True, **options)
    keys = (info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    check_keys(*keys, f"the checkpoint {model!r}")
    return network.eval()


def _read(config: Any, path: str) -> int:
    for name in path.split("."):
        config = getattr(config, name)
    return config
