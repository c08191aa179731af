"""Tiny random models of the real classes with real processors, saved to a folder: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as T
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, processors

QWEN_TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
HIDDEN = 32


def tiny_tokenizer(
    specials: Sequence[str] = (),
    *,
    pad: str = "<pad>",
    bos: str | None = None,
    eos: str = "</s>",
    unk: str = "<unk>",
    padding_side: str = "left",
) -> T.PreTrainedTokenizerFast:
    """A tokenizer of one token a character; it puts `bos`, where there is one, before every text."""
    base = [token for token in dict.fromkeys([pad, unk, bos, eos]) if token]
    tokens = dict.fromkeys([*base, *specials, *map(chr, range(32, 127))])
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=unk))
    tokenizer.decoder = decoders.Fuse()
    # without these, <|image_pad|> would be read letter by letter
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in [*base, *specials]])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocab[bos])]
        )
    return T.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        padding_side=padding_side,
    )


def _qwen_parts(padding_side: str, rope: dict[str, Any], **text: Any) -> tuple[Any, dict, dict]:
    tokenizer = tiny_tokenizer(QWEN_TOKENS, pad="<|endoftext|>", eos="<|im_end|>", padding_side=padding_side)
    number = tokenizer.convert_tokens_to_ids
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": number("<|im_start|>"),
        "eos_token_id": number("<|im_end|>"),
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", **rope},
        **text,
    }
    ids = {
        "image_token_id": number("<|image_pad|>"),
        "video_token_id": number("<|video_pad|>"),
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
    }
    return tokenizer, config, ids


def qwen2_vl(padding_side: str = "left") -> tuple[Any, Any]:
    """The model and its processor; one token is 28x28 pixels, an image has at most 16 tokens."""
    rope = {"rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    tokenizer, text, ids = _qwen_parts(padding_side, rope)
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    images = T.Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28})
    processor = T.Qwen2VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=T.Qwen2VLVideoProcessor()
    )
    config = T.Qwen2VLConfig(text_config=text, vision_config={**vision, "patch_size": 14}, **ids)
    return T.Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl(padding_side: str = "left") -> tuple[Any, Any]:
    """As :func:`qwen2_vl`, with window attention in the vision tower."""
    rope = {"rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    tokenizer, text, ids = _qwen_parts(padding_side, rope)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 14,
        "out_hidden_size": HIDDEN,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    images = T.Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28})
    processor = T.Qwen2_5_VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=T.Qwen2VLVideoProcessor()
    )
    config = T.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    return T.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl(padding_side: str = "left") -> tuple[Any, Any]:
    """The model and its processor; one token is 32x32 pixels, an image has at most 16 tokens."""
    rope = {"rope_theta": 5e6, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    tokenizer, text, ids = _qwen_parts(padding_side, rope, head_dim=8)
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    images = T.Qwen2VLImageProcessor(
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 32 * 32, "longest_edge": 16 * 32 * 32},
    )
    processor = T.Qwen3VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=T.Qwen3VLVideoProcessor()
    )
    config = T.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    return T.Qwen3VLForConditionalGeneration(config), processor


def llava_next(padding_side: str = "left", side: int = 28) -> tuple[Any, Any]:
    """The model and its processor; tiles of `side` pixels, 14 pixels a patch. The real side is 336."""
    tokenizer = tiny_tokenizer(["<image>"], bos="<s>", padding_side=padding_side)
    grid = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    pinpoints = [[rows * side, columns * side] for rows, columns in grid]
    text = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side,
        "patch_size": 14,
    }
    config = T.LlavaNextConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(side // 14) ** 2,
    )
    images = T.LlavaNextImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=pinpoints,
    )
    processor = T.LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return T.LlavaNextForConditionalGeneration(config), processor


def phi3_v(padding_side: str = "left", num_crops: int = 1) -> tuple[Any, Any]:
    """The model and its processor; the image tower has its real 336 pixels, 313 tokens with one crop."""
    from fanoise_lightning.encoders.phi3_vision import Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor

    tokenizer = tiny_tokenizer(bos="<s>", padding_side=padding_side)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 336,
        "patch_size": 14,
    }
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]}
    config = Phi3VConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_theta=10000.0,
        rope_scaling={"type": "su", **factors},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        img_processor={"name": "clip_vision_model", "image_dim_out": 16, "num_img_tokens": 144},
        vision_config=vision,
    )
    processor = Phi3VProcessor(Phi3VImageProcessor(num_crops=num_crops), tokenizer)
    return T.AutoModelForImageTextToText.from_config(config), processor


BUILDERS = {
    "phi3_v": phi3_v,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava_next": llava_next,
}


def save_tiny(folder: str | Path, family: str, seed: int = 0, **options: Any) -> str:
    """Save a tiny random model and its processor as a checkpoint folder; its path."""
    torch.manual_seed(seed)
    model, processor = BUILDERS[family](**options)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def make_image(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    """Noise, so that no two images are alike."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
