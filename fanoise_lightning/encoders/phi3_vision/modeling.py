"""Phi-3.5-vision built from the Phi-3 and CLIP of transformers, without remote code.

Parameter names are those of the published checkpoint, so checkpoints and adapters work in both directions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Phi3ForCausalLM, Phi3Model
from transformers.cache_utils import Cache
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from fanoise_lightning.encoders.phi3_vision.configuration import Phi3VConfig
from fanoise_lightning.encoders.phi3_vision.hd_transform import CROP_SIZE, num_image_tokens
from fanoise_lightning.encoders.phi3_vision.layers import Phi3VImageEmbedding, Phi3VRotaryEmbedding

__all__ = ["EmbeddingAlias", "Phi3VForCausalLM", "Phi3VModel"]


class EmbeddingAlias(WeightRenaming):
    """Reads the published alias ``vision_embed_tokens.wte`` as ``embed_tokens``; only the latter is saved."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        """Saving has nothing to undo."""
        return WeightRenaming("embed_tokens", "embed_tokens")


class Phi3VModel(Phi3Model):
    """Phi-3.5-vision without its language model head.

    Args:
        config: a ``Phi3VConfig``.

    Raises:
        ValueError: if the configuration asks for an image layout that is not implemented.

    Example:
        >>> model = AutoModelForImageTextToText.from_pretrained(path).model  # doctest: +SKIP
        >>> hidden = model(**processor(text=texts, images=images)).last_hidden_state  # doctest: +SKIP
    """

    config_class = Phi3VConfig
    input_modalities = ["image", "text"]  # noqa: RUF012
    _no_split_modules = ["Phi3DecoderLayer", "CLIPEncoderLayer", "CLIPVisionEmbeddings"]  # noqa: RUF012

    def __init__(self, config: Phi3VConfig) -> None:
        config.check_layout()
        super().__init__(config)
        self.rotary_emb = Phi3VRotaryEmbedding(config)  # type: ignore[assignment]
        self.vision_embed_tokens = Phi3VImageEmbedding(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        _init_separators(module)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, L, D) of texts with images in them.

        Args:
            input_ids: (B, L); -i stands for a token of the row's i-th image, i = 1, 2, ...
            attention_mask: (B, L), 0 where padded, on either side.
            position_ids: (B or 1, L); 0 .. L - 1 unless given.
            past_key_values: of an earlier call, for generation.
            inputs_embeds: (B, L, D) instead of ``input_ids`` and images.
            use_cache: build a key-value cache, which an encoder does not need.
            pixel_values: (n, M, 3, 336, 336) crops of the n images, row by row and by number within a row.
                Their dtype may differ from that of the weights.
            image_sizes: (n, 2), height and width in pixels of the padded images.
            **kwargs: passed on to ``Phi3Model``.

        Raises:
            ValueError: if image tokens and images do not match.
        """
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self.embed_inputs(input_ids, pixel_values, image_sizes)
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def embed_inputs(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, image_sizes: Tensor | None = None
    ) -> Tensor:
        """Input vectors (B, L, D) of words and images; the arguments are those of :meth:`forward`.

        An image's tokens are found by their number, so images may be named in any order in the text.
        """
        embeds = self.embed_tokens(input_ids.clamp(min=0))
        # Row and number as one key: equal for the tokens of one image, increasing from image to image.
        is_image = input_ids < 0
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None]
        keys = (rows << 32) - input_ids
        found, counts = torch.unique(keys[is_image], return_counts=True)
        grids = _read_grids(found, counts, pixel_values, image_sizes)
        if not grids:
            return embeds

        vectors = self.vision_embed_tokens(pixel_values, grids).to(embeds.dtype)
        order = keys.masked_fill(~is_image, torch.iinfo(keys.dtype).max).flatten().argsort(stable=True)
        flat = embeds.flatten(0, 1).index_copy(0, order[: len(vectors)], vectors)
        return flat.view_as(embeds)


class Phi3VForCausalLM(Phi3ForCausalLM):
    """Phi-3.5-vision with its language model head; ``.model`` is the :class:`Phi3VModel`.

    ``AutoModelForImageTextToText`` loads this class, and the published code saves adapters of it.
    """

    config_class = Phi3VConfig
    input_modalities = ["image", "text"]  # noqa: RUF012
    _no_split_modules = Phi3VModel._no_split_modules

    def __init__(self, config: Phi3VConfig) -> None:
        super(Phi3ForCausalLM, self).__init__(config)  # the parent's own would build the text-only model
        self.model = Phi3VModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        _init_separators(module)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 0,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, L, vocabulary), and a loss if there are ``labels``; see :meth:`Phi3VModel.forward`."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            **kwargs,
        )


def _init_separators(module: nn.Module) -> None:
    if isinstance(module, Phi3VImageEmbedding):
        nn.init.zeros_(module.glb_GN)
        nn.init.zeros_(module.sub_GN)


def _read_grids(
    keys: Tensor, counts: Tensor, pixel_values: Tensor | None, image_sizes: Tensor | None
) -> list[tuple[int, int]]:
    """Rows and columns of crops of each image, checked against the tokens found for it."""
    num_images = 0 if pixel_values is None else len(pixel_values)
    if num_images != len(counts):
        raise ValueError(
            f"the texts hold the tokens of {len(counts)} images, but pixel_values holds {num_images}: "
            "give the image of each <|image_i|> placeholder, and no other."
        )
    if num_images == 0:
        return []
    if image_sizes is None or image_sizes.shape != (num_images, 2):
        shape = None if image_sizes is None else tuple(image_sizes.shape)
        raise ValueError(f"image_sizes has shape {shape}; expected ({num_images}, 2), one row per image.")
    grids = [(h // CROP_SIZE, w // CROP_SIZE) for h, w in image_sizes.tolist()]
    for i, ((h, w), count) in enumerate(zip(grids, counts.tolist())):
        if count != num_image_tokens(h, w):
            row, number = divmod(int(keys[i]), 1 << 32)
            raise ValueError(
                f"image {i} of the batch (row {row}, <|image_{number}|>) has {count} tokens in input_ids, "
                f"but {h} x {w} crops make {num_image_tokens(h, w)}: process texts and images together."
            )
    return grids
