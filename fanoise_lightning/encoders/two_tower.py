"""Two-tower encoders from transformers."""

from __future__ import annotations

from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import default_collate

from fanoise_lightning.encoders.adapters import LoraOptions, check_one_adapter
from fanoise_lightning.encoders.eight_bit import EightBit
from fanoise_lightning.encoders.loading import Dtype, load_network, load_processor
from fanoise_lightning.encoders.plain_text import PlainTexts
from fanoise_lightning.encoders.saved_adapters import put_adapter
from fanoise_lightning.encoders.source_weights import digests
from fanoise_lightning.encoders.towers import TowerCollate, TwoTowers
from fanoise_lightning.encoders.two_tower_families import TwoTowerFamily, find_two_tower_family

__all__ = ["TwoTowerEncoder", "read_collate"]


class TwoTowerEncoder(TwoTowers):
    """CLIP, SigLIP, SigLIP 2, ALIGN, BLIP or BLIP-2 from transformers, with its own processor.

    The embedding of a sample with a text and an image is the sum of both towers' unit vectors. A text longer
    than the tower takes is cut and keeps its end token, as in CLIP (after 77 tokens; SigLIP after 64); the
    limit is printed once. The families differ:

    - SigLIP and SigLIP 2: texts are lower-cased, padded to the full length and read without a mask, as in
      their training; shorter padding gives other vectors.
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
        lora: the settings of a fresh adapter, see :class:`LoraOptions`; ``{}`` is the paper's recipe. By
            default the adapter is put on the attention and the MLP of every block of both towers (ALIGN: of
            the text tower). Only an adapter is trained if there is one, otherwise the whole model.
        adapter: a hub id or a folder of a saved adapter to continue training.
        gradient_checkpointing: save memory at the cost of a second forward pass.
        dtype: the dtype of the frozen weights; an adapter stays in float32. With ``"bfloat16"``, train with
            Lightning's ``precision: bf16-mixed``.
        split_special_tokens: read the names of special tokens in texts, such as ``[SEP]``, as text; ``False``
            lets them act.

    Raises:
        ValueError: if the model type is unknown, if the model needs Python code of its own, if weights or
            adapter weights do not all load, or if both `lora` and `adapter` are given.

    Example:
        >>> encoder = TwoTowerEncoder("openai/clip-vit-base-patch16")                   # doctest: +SKIP
        >>> batch = encoder.collate([Sample("a cat"), Sample(image=image)])             # doctest: +SKIP
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
        dtype: Dtype = "float32",
        split_special_tokens: bool = True,
    ) -> None:
        super().__init__()
        import transformers

        check_one_adapter(lora, adapter)
        self.model, self.lora, self.adapter = model, lora, adapter
        self.gradient_checkpointing, self.dtype = gradient_checkpointing, dtype
        self.split_special_tokens = split_special_tokens
        self._family = find_two_tower_family(model)
        self.network = load_network(getattr(transformers, self._family.network), model, dtype)
        loaded = digests(self.network)
        self.embedding_dim = _read(self.network.config, self._family.dim)
        if gradient_checkpointing:
            self.network.gradient_checkpointing_enable({"use_reentrant": False})
            # only reentrant checkpointing needs gradients at the embeddings, and BLIP's fail with them
            self.network.disable_input_require_grads()
        put_adapter(self.network, model, lora, adapter, self._family.lora_targets)
        self.remember(loaded)
        self.freeze(self.network, self._family.unused)
        self.collate: _ProcessorCollate = _collate(
            model, self._family, self.network.config, split_special_tokens
        )
        self.report_towers(model, self.collate.context_length)
        self.eval()  # as transformers returns models; a fresh adapter's dropout is on

    def encode_text(self, **inputs: Tensor) -> Tensor:
        return self._family.text(self.network, **inputs)

    def encode_image(self, **inputs: Tensor) -> Tensor:
        inputs["pixel_values"] = inputs["pixel_values"].to(self.network.dtype)
        return self._family.image(self.network, **inputs)


class _ProcessorCollate(TowerCollate):
    """The tokenizer and the image processor that come with a checkpoint."""

    def __init__(self, model: str, positions: int, siglip: bool, split_special_tokens: bool) -> None:
        processor = load_processor(model)
        self.tokenizer, self.image_processor = processor.tokenizer, processor.image_processor
        # positions count from the left, where SigLIP 2's tokenizer pads unless its checkpoint sets a side
        self.tokenizer.padding_side = "right"
        size = self.image_processor.size or {}
        super().__init__("shortest_edge" in size and getattr(self.image_processor, "do_center_crop", False))
        # a tokenizer may have a lower limit; one without a limit has 1e30
        self.context_length = min(positions, self.tokenizer.model_max_length)
        self.siglip = siglip
        self._eight_bit = EightBit(self.image_processor)
        self.read = PlainTexts(self.tokenizer) if split_special_tokens else self.tokenizer

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        tokens = self.read(
            # the tokenizer of SigLIP 2 at a fixed resolution does not lower-case texts
            [text.lower() for text in texts] if self.siglip else texts,
            padding="max_length" if self.siglip else True,
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )
        names = ("input_ids",) if self.siglip else ("input_ids", "attention_mask")
        return {name: tokens[name] for name in names}

    def transform(self, images: list[Image]) -> dict[str, Tensor]:
        if (inputs := self._eight_bit(self.image_processor, images)) is not None:
            return inputs
        # not the processor's own tensors: `default_collate` stacks in shared memory in a worker
        return {
            name: default_collate([torch.as_tensor(value) for value in values])
            for name, values in self.image_processor(images=images).items()
        }


def read_collate(folder: str, split_special_tokens: bool) -> TowerCollate:
    """What :class:`TwoTowerEncoder` collates with, from a folder without its weights.

    Raises:
        ValueError: if the model type is unknown.
        OSError: if the folder has no config, tokenizer or image processor.
    """
    from transformers import AutoConfig

    family = find_two_tower_family(folder)
    return _collate(
        folder, family, AutoConfig.from_pretrained(folder, trust_remote_code=False), split_special_tokens
    )


def _collate(
    model: str, family: TwoTowerFamily, config: Any, split_special_tokens: bool
) -> _ProcessorCollate:
    return _ProcessorCollate(model, _read(config, family.positions), family.siglip, split_special_tokens)


def _read(config: Any, path: str) -> int:
    """The entry of a config at a dotted path."""
    for name in path.split("."):
        config = getattr(config, name)
    return config
