"""Generative vision-language models as encoders: one forward for every family."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fanoise_lightning._checks import check_choice
from fanoise_lightning._log import report
from fanoise_lightning.encoders.adapters import LoraOptions, check_one_adapter
from fanoise_lightning.encoders.images import ImageSize
from fanoise_lightning.encoders.loading import Dtype, four_bit, load_network
from fanoise_lightning.encoders.placeholders import append_prompt, smallest_image_prompt
from fanoise_lightning.encoders.pooling import Pooling, last_token, mean_token
from fanoise_lightning.encoders.pretrained import PretrainedEncoder
from fanoise_lightning.encoders.saved_adapters import put_adapter
from fanoise_lightning.encoders.source_weights import digests
from fanoise_lightning.encoders.vision_language_collate import VisionLanguageCollate

__all__ = ["VisionLanguageEncoder"]

Positions = Literal["model", "vlm2vec"]


class VisionLanguageEncoder(PretrainedEncoder):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL, LLaVA-NeXT or Phi-3.5-V; a sample's vector is pooled over its tokens.

    Texts, images, texts with images and samples of several images share one batch and one forward pass. A
    text may hold ``<|image_1|>``, ``<|image_2|>``, ... where its images belong; otherwise the images come
    first.

    With ``lora`` or ``adapter``, only the adapter is trained; otherwise the whole model is, or its language
    part with ``freeze_vision``.

    Args:
        model: a hub id or a folder.
        pooling: ``"last"`` takes the state of the last token, ``"mean"`` the mean over all tokens, ``"eos"``
            the state of an EOS token that is appended to every prompt.
        image_size: the edge in pixels of the square that every image is resized to, or ``"low"`` (336) or
            ``"high"`` (1344), the paper's LR and HR. ``None`` leaves images to the processor: Qwen's keeps
            their aspect ratio. Not for Phi-3.5-V.
        max_pixels: the maximum number of pixels (width x height) of an image, for Qwen; larger images are
            scaled down, even after `image_size`. The recipe's 1225 tokens take ``image_size="high"`` and
            1280 * 28 * 28 here.
        num_crops: the maximum number of crops of an image, for Phi-3.5-V.
        max_length: the maximum number of tokens of a prompt. A text without images is cut to it; a longer
            prompt with images is an error.
        max_text_length: the maximum number of tokens of a text without images, if less than `max_length`.
        positions: ``"model"``, or ``"vlm2vec"``: Qwen2-VL with a bare ``<|image_pad|>`` and plain positions,
            as the published VLM2Vec-Qwen2-VL was trained.
        lora: the settings of a fresh adapter, see :class:`LoraOptions`; ``{}`` is the paper's recipe.
        adapter: a hub id or a folder of a saved adapter to continue training.
        freeze_vision: keep the vision tower and its projector frozen.
        gradient_checkpointing: save memory at the cost of a second forward pass.
        dtype: the dtype of the frozen weights; an adapter stays in float32. With ``"bfloat16"``, train with
            Lightning's ``precision: bf16-mixed``.
        attn_implementation: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``; ``None`` leaves the choice to
            transformers.
        load_in_4bit: hold the frozen weights in 4 bits; needs bitsandbytes, a GPU and an adapter.
        trust_remote_code: run the Python code of a checkpoint whose model type is unknown here.
        split_special_tokens: read the names of special tokens in texts, such as ``<|im_end|>``, as text;
            ``False`` lets them act, for texts that hold a chat template.

    Raises:
        ValueError: if the model type is unknown, if weights or adapter weights do not all load, or if options
            contradict each other.
        ImportError: if bitsandbytes is needed and missing.

    Example:
        >>> encoder = VisionLanguageEncoder("Qwen/Qwen2-VL-2B-Instruct", lora={})       # doctest: +SKIP
        >>> batch = encoder.collate([Sample("a cat"), Sample("what is it?", image)])    # doctest: +SKIP
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
        positions: Positions = "model",
        lora: LoraOptions | None = None,
        adapter: str | None = None,
        freeze_vision: bool = False,
        gradient_checkpointing: bool = False,
        dtype: Dtype = "float32",
        attn_implementation: str | None = None,
        load_in_4bit: bool = False,
        trust_remote_code: bool = False,
        split_special_tokens: bool = True,
    ) -> None:
        super().__init__()
        from transformers import AutoModelForImageTextToText

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
            bare_placeholders=positions == "vlm2vec",
            trust_remote_code=trust_remote_code,
            split_special_tokens=split_special_tokens,
        )
        options: dict[str, Any] = four_bit() if load_in_4bit else {}
        if attn_implementation is not None:
            options["attn_implementation"] = attn_implementation
        self._remote = not self.collate.family.placeholder
        self.network = load_network(AutoModelForImageTextToText, model, dtype, self._remote, **options)
        self.embedding_dim = self.network.config.get_text_config().hidden_size
        loaded = digests(self.network)
        self._choose_what_trains()
        # nobody uses its logits, which take 2.5 GB for 8 x 1024 tokens of Qwen2-VL
        self.network.lm_head = torch.nn.Identity()
        self.remember(loaded)
        self.eval()  # as it was loaded, including the dropout of a fresh adapter
        self._report_images()
        self.report(model)

    def _choose_what_trains(self) -> None:
        family = self.collate.family
        put_adapter(self.network, self.model, self.lora, self.adapter, family.lora_targets)
        if self.freeze_vision and not family.vision:
            raise ValueError(f"`freeze_vision` does not know the vision part of {family.name}: pass `lora`")
        if self.freeze_vision:
            for name, parameter in self.network.model.named_parameters():
                if name.startswith(family.vision):
                    parameter.requires_grad_(False)
        if self.gradient_checkpointing:
            self.network.gradient_checkpointing_enable({"use_reentrant": False})

    def save_pretrained(self, folder: str | Path) -> None:
        """Save for transformers and this encoder: only an adapter, or all weights and the processor.

        The encoder drops the language head, which an embedding does not use; here it is read again from the
        checkpoint that the encoder was built from. ``encoder.network.save_pretrained`` leaves it out: loaded
        to generate text, such a checkpoint has a random head, unless it is tied to the token embeddings.

        Args:
            folder: the folder to write to; it is created if needed.
        """
        from transformers import AutoModelForImageTextToText

        if self.lora is not None or self.adapter is not None:
            self.network.save_pretrained(folder)
            return
        source = load_network(AutoModelForImageTextToText, self.model, self.dtype, self._remote)
        without, self.network.lm_head = self.network.lm_head, source.lm_head
        try:
            self.network.tie_weights()
            self.network.save_pretrained(folder)
        finally:
            self.network.lm_head = without
        self.collate.processor.save_pretrained(folder)

    def _report_images(self) -> None:
        edge = self.collate.edge
        width, height = (edge, edge) if edge else (640, 480)
        size = f"resized to {edge}x{edge}" if edge else f"as the processor sizes them, e.g. {width}x{height}"
        tokens = self.collate.image_tokens(width, height)
        report(f"{self.model}: images {size}: {tokens} tokens each")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **images: Tensor) -> Tensor:  # type: ignore[override]
        """Embed a collated batch of B samples of at most L tokens.

        Args:
            input_ids: (B, L), padded left or right.
            attention_mask: (B, L), 1 for a token, 0 for padding.
            images: what the family's processor adds for images, flat over all images of the batch.

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
    check_choice("pooling", pooling, Pooling)
    check_choice("positions", positions, Positions)
    check_one_adapter(lora, adapter)
    if load_in_4bit and lora is None and adapter is None:
        raise ValueError("4-bit weights cannot be trained: `load_in_4bit` needs `lora` or `adapter`")
