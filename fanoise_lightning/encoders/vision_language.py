"""Generative vision-language models as encoders: one forward for every family."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from fanoise_lightning.encoders.adapters import LoraOptions, add_lora, train_only_what_trains
from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.encoders.images import ImageSize
from fanoise_lightning.encoders.loading import load_network
from fanoise_lightning.encoders.placeholders import append_prompt, smallest_image_prompt
from fanoise_lightning.encoders.pooling import Pooling, last_token, mean_token
from fanoise_lightning.encoders.saved_adapters import load_lora
from fanoise_lightning.encoders.vision_language_collate import VisionLanguageCollate

__all__ = ["VisionLanguageEncoder"]


class VisionLanguageEncoder(Encoder):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL, LLaVA-NeXT or Phi-3.5-V; a sample's vector is pooled over its tokens.

    Texts, images, texts with images and samples of several images share one batch and one forward. A
    text may hold ``<|image_1|>``, ``<|image_2|>``, ... where its images belong; without them the images
    come first.

    With ``lora`` or ``adapter`` the adapter alone is trained; without, everything is (the language part alone
    with ``freeze_vision``).

    Args:
        model: a hub id or a folder.
        pooling: ``"last"`` token, ``"mean"`` over all tokens, or ``"eos"``: an EOS token is put behind every
            prompt and its state is taken.
        image_size: the side in pixels of the square that every image is resized to, or ``"low"`` (336) or
            ``"high"`` (1344), the paper's LR and HR. ``None`` leaves images to the processor: Qwen keeps
            their aspect ratio. Not for Phi-3.5-V.
        max_pixels: the most pixels (width x height) of an image, for Qwen; larger ones are scaled down, also
            after `image_size`. The recipe's 1225 tokens: ``image_size="high"`` with 1280 * 28 * 28 here.
        num_crops: the most crops of an image, for Phi-3.5-V.
        max_length: the most tokens of a prompt. A text without images is cut to it; a longer prompt with
            images is an error.
        max_text_length: the most tokens of a text without images, where that is less than `max_length`.
        positions: ``"model"``, or ``"vlm2vec"``: Qwen2-VL with a bare ``<|image_pad|>`` and plain positions,
            as the published VLM2Vec-Qwen2-VL was trained.
        lora: settings of a fresh adapter, see :class:`LoraOptions`; ``{}`` for the paper's.
        adapter: a hub id or a folder of a saved adapter, which is trained on.
        freeze_vision: keep the vision tower and its projector as they are.
        gradient_checkpointing: trade a second forward pass for memory.
        dtype: of the frozen weights; an adapter stays in float32. With ``"bfloat16"`` train in Lightning's
            ``precision: bf16-mixed``.
        attn_implementation: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``; ``None`` is transformers' own.
        load_in_4bit: hold the frozen weights in 4 bits; needs bitsandbytes, a GPU and an adapter.
        trust_remote_code: run the Python code of a checkpoint whose model type is unknown here.
        split_special_tokens: read the names of special tokens in texts, such as ``<|im_end|>``, as text;
            ``False`` lets them act, for texts that hold a chat template.

    Raises:
        ValueError: if the model type is unknown, if weights or adapter weights do not all load, or options
            contradict each other.
        ImportError: if bitsandbytes is needed and missing.

    Example:
        >>> encoder = VisionLanguageEncoder("Qwen/Qwen2-VL-2B-Instruct", lora={})       # doctest: +SKIP
        >>> batch = encoder.collate([Sample("a cat"), Sample("what is it?", image)])  # doctest: +SKIP
        >>> encoder(**batch).shape                                                      # doctest: +SKIP
        torch.Size([2, 1536])
    """

    def __init__(
        self,
        model: str,
        *,
        pooling: Pooling = "last",
        image_size: ImageSize | None = None,
        max_pixels: int | None = None,
        num_crops: int | None = None,
        max_length: int | None = None,
        max_text_length: int | None = None,
        positions: Literal["model", "vlm2vec"] = "model",
        lora: LoraOptions | None = None,
        adapter: str | None = None,
        freeze_vision: bool = False,
        gradient_checkpointing: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        attn_implementation: str | None = None,
        load_in_4bit: bool = False,
        trust_remote_code: bool = False,
        split_special_tokens: bool = True,
    ) -> None:
        super().__init__()
        _check_options(pooling, positions, lora, adapter, load_in_4bit)
        self.model, self.pooling, self.positions = model, pooling, positions
        self.image_size, self.max_pixels, self.num_crops = image_size, max_pixels, num_crops
        self.max_length, self.max_text_length = max_length, max_text_length
        self.lora, self.adapter, self.freeze_vision = lora, adapter, freeze_vision
        self.gradient_checkpointing, self.dtype = gradient_checkpointing, dtype
        self.attn_implementation, self.load_in_4bit = attn_implementation, load_in_4bit
        self.trust_remote_code = trust_remote_code
        self.split_special_tokens = split_special_tokens
        self.collate: VisionLanguageCollate = VisionLanguageCollate(
            model,
            image_size=image_size,
            max_pixels=max_pixels,
            num_crops=num_crops,
            max_length=max_length,
            max_text_length=max_text_length,
            append_eos=pooling == "eos",
            bare_markers=positions == "vlm2vec",
            trust_remote_code=trust_remote_code,
            split_special_tokens=split_special_tokens,
        )
        self.network = load_network(
            model,
            dtype=dtype,
            attn_implementation=attn_implementation,
            load_in_4bit=load_in_4bit,
            trust_remote_code=not self.collate.family.marker,
        )
        self.embedding_dim = self.network.config.get_text_config().hidden_size
        self._choose_what_trains()
        # its logits are never asked for: 2.5 GB for 8 x 1024 tokens of Qwen2-VL
        self.network.lm_head = torch.nn.Identity()
        self.eval()  # as it is loaded: the adapter's new dropout too
        self._report()

    def _choose_what_trains(self) -> None:
        family = self.collate.family
        if self.adapter is not None:
            load_lora(self.network, self.adapter, self.model)
        elif self.lora is not None:
            add_lora(self.network, self.lora, family.lora_targets)
        if self.freeze_vision and not family.vision:
            raise ValueError(f"`freeze_vision` does not know the vision part of {family.name}: use `lora`")
        if self.freeze_vision:
            for name, parameter in self.network.model.named_parameters():
                if name.startswith(family.vision):
                    parameter.requires_grad_(False)
        if self.gradient_checkpointing:
            self.network.gradient_checkpointing_enable({"use_reentrant": False})

    def save_pretrained(self, folder: str | Path) -> None:
        """Save what transformers and this encoder load: an adapter alone, else all weights and the processor.

        The encoder drops the language head, which takes no part in an embedding. Here it is read again from
        the checkpoint that the encoder was built from. ``encoder.network.save_pretrained`` leaves it out: in
        what loads that to write texts, a head that is not tied to the token embeddings would be random.

        Args:
            folder: where to; it is made if it is not there.
        """
        if self.lora is not None or self.adapter is not None:
            self.network.save_pretrained(folder)
            return
        source = load_network(self.model, dtype=self.dtype, trust_remote_code=not self.collate.family.marker)
        without, self.network.lm_head = self.network.lm_head, source.lm_head
        try:
            self.network.tie_weights()
            self.network.save_pretrained(folder)
        finally:
            self.network.lm_head = without
        self.collate.processor.save_pretrained(folder)

    def _report(self) -> None:
        side = self.collate.side
        width, height = (side, side) if side else (640, 480)
        size = f"resized to {side}x{side}" if side else f"as the processor sizes them, e.g. {width}x{height}"
        tokens = self.collate.image_tokens(width, height)
        rank_zero_info(f"{self.model}: images {size}: {tokens} tokens each")
        counts = [parameter.numel() for parameter in self.parameters() if parameter.requires_grad]
        total = sum(parameter.numel() for parameter in self.parameters())
        rank_zero_info(f"{self.model}: {sum(counts):,} of {total:,} parameters are trained")

    def train(self, mode: bool = True) -> VisionLanguageEncoder:
        """Train mode for whatever holds trainable weights; frozen parts stay in eval mode."""
        super().train(mode)
        if mode:
            train_only_what_trains(self)
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **images: Tensor) -> Tensor:  # type: ignore[override]
        """Embed a collated batch of B samples of at most L tokens.

        Args:
            input_ids: (B, L), padded on either side.
            attention_mask: (B, L), 1 where there is a token.
            images: what the family's processor adds, flat over the images of the whole batch.

        Returns:
            (B, D), float32.
        """
        if self.positions == "vlm2vec":
            plain = torch.arange(input_ids.shape[1], device=input_ids.device)
            images["position_ids"] = plain.expand(3, *input_ids.shape)
        hidden = self.network.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **images
        ).last_hidden_state
        if self.pooling == "mean":
            return mean_token(hidden, attention_mask)
        if self.pooling == "eos":
            attention_mask = attention_mask * (input_ids == self.collate.processor.tokenizer.eos_token_id)
        return last_token(hidden, attention_mask).float()

    def parts(self, batch: dict[str, Tensor]) -> tuple[bool, ...]:
        """Whether the vision tower runs."""
        return ("pixel_values" in batch,)

    def add_row(self, batch: dict[str, Tensor], parts: tuple[bool, ...]) -> dict[str, Tensor]:
        if not any(parts):
            return super().add_row(batch, parts)
        row = self._smallest_image
        return append_prompt(batch, row, self.collate.processor.tokenizer) if batch else dict(row)

    @cached_property
    def _smallest_image(self) -> dict[str, Tensor]:
        return smallest_image_prompt(self.collate)


def _check_options(
    pooling: str, positions: str, lora: LoraOptions | None, adapter: str | None, load_in_4bit: bool
) -> None:
    if pooling not in ("last", "mean", "eos"):
        raise ValueError(f"`pooling` must be 'last', 'mean' or 'eos', got {pooling!r}")
    if positions not in ("model", "vlm2vec"):
        raise ValueError(f"`positions` must be 'model' or 'vlm2vec', got {positions!r}")
    if lora is not None and adapter is not None:
        raise ValueError(
            "`lora` starts a fresh adapter and `adapter` continues a saved one: give one of them"
        )
    if load_in_4bit and lora is None and adapter is None:
        raise ValueError("4-bit weights cannot be trained: `load_in_4bit` needs `lora` or `adapter`")
