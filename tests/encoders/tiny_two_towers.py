"""Tiny random two-tower models of the real classes with real processors, saved to a folder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers as T
from tiny_models import tiny_tokenizer
from tokenizers import processors

BLOCKS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**BLOCKS, "image_size": 32, "patch_size": 16}
SQUARE = {"height": 32, "width": 32}


@functools.cache
def clip_tokenizer(length: int = 16, most_merges: int | None = None) -> Any:
    """CLIP's own, from the vocabulary in open_clip's wheel, or its bytes and first merges alone."""
    simple = open_clip.SimpleTokenizer()
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)[:most_merges]
    tokens = list(simple.encoder)[: 2 * 256 + len(merges)]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return T.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def bert_tokenizer() -> Any:
    """One token a letter; room for the [DEC] and <image> that BLIP adds."""
    letters = [chr(i) for i in range(33, 127) if not chr(i).isupper()]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*specials, *letters, *(f"##{letter}" for letter in letters)]
    return T.BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})


def clip() -> tuple[Any, Any]:
    tokenizer = clip_tokenizer(most_merges=200)  # all 48,894 take a second wherever they are loaded
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {**BLOCKS, "vocab_size": len(tokenizer), "max_position_embeddings": 16, **ids}
    images = T.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    config = T.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return T.CLIPModel(config), T.CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def _siglip_text(tokenizer: Any) -> dict[str, Any]:
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return {
        **BLOCKS,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "projection_size": 32,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def siglip() -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(padding_side="right")
    config = T.SiglipConfig(text_config=_siglip_text(tokenizer), vision_config=VISION)
    images = T.SiglipImageProcessor(size=SQUARE)
    return T.SiglipModel(config), T.SiglipProcessor(image_processor=images, tokenizer=tokenizer)


def siglip2() -> tuple[Any, Any]:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *map(chr, range(33, 127))]
    tokenizer = T.Siglip2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    vision = {**BLOCKS, "num_patches": 16, "patch_size": 8}
    config = T.Siglip2Config(text_config=_siglip_text(tokenizer), vision_config=vision)
    images = T.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    return T.Siglip2Model(config), T.Siglip2Processor(image_processor=images, tokenizer=tokenizer)


def align() -> tuple[Any, Any]:
    tokenizer = bert_tokenizer()
    text = {**BLOCKS, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    vision = {
        "image_size": 32,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "depth_divisor": 8,
        "hidden_dim": 32,
        "in_channels": [32, 16],
        "out_channels": [16, 32],
        "kernel_sizes": [3, 3],
        "depthwise_padding": [],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
        "squeeze_expansion_ratio": 0.25,
    }
    config = T.AlignConfig(text_config=text, vision_config=vision, projection_dim=32)
    images = T.EfficientNetImageProcessor(size=SQUARE)
    return T.AlignModel(config), T.AlignProcessor(image_processor=images, tokenizer=tokenizer)


def blip() -> tuple[Any, Any]:
    tokenizer = bert_tokenizer()
    text = {
        **BLOCKS,
        "vocab_size": len(tokenizer) + 2,
        "max_position_embeddings": 64,
        "encoder_hidden_size": 32,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = T.BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=24)
    images = T.BlipImageProcessor(size=SQUARE)
    return T.BlipForImageTextRetrieval(config), T.BlipProcessor(image_processor=images, tokenizer=tokenizer)


def blip2() -> tuple[Any, Any]:
    tokenizer = bert_tokenizer()
    qformer = {
        **BLOCKS,
        "vocab_size": len(tokenizer) + 2,
        "max_position_embeddings": 64,
        "encoder_hidden_size": 32,
        "cross_attention_frequency": 2,
        "use_qformer_text_input": True,
        "pad_token_id": tokenizer.pad_token_id,
    }
    images = T.BlipImageProcessor(size=SQUARE)
    processor = T.Blip2Processor(image_processor=images, tokenizer=tokenizer, num_query_tokens=4)
    config = T.Blip2Config(
        vision_config=VISION,
        qformer_config=qformer,
        text_config={"model_type": "opt", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 10},
        num_query_tokens=4,
        image_text_hidden_size=24,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    return T.Blip2ForImageTextRetrieval(config), processor


BUILDERS = {
    "clip": clip,
    "siglip": siglip,
    "siglip2": siglip2,
    "align": align,
    "blip": blip,
    "blip-2": blip2,
}


def save_tiny(folder: str | Path, family: str) -> str:
    """Save a tiny random model and its processor as a checkpoint folder; its path."""
    torch.manual_seed(0)
    model, processor = BUILDERS[family]()
    for parameter in model.parameters():
        # as they come, a BERT or a ViT this small gives every text or image the same vector
        if parameter.dim() > 1 and family != "align":
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
