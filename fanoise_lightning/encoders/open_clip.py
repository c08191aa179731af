"""Two-tower encoders from open_clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.sample import Sample

__all__ = ["OpenClipEncoder"]

HAS_TEXT, HAS_IMAGE = 1, 2

_OWN_CONFIGS = Path(__file__).parent / "open_clip_configs"


class OpenClipEncoder(Encoder):
    """Any open_clip model, with its own tokenizer and picture transform.

    A sample with a text and a picture is embedded as the sum of both towers' unit vectors.

    Args:
        model: a name from ``open_clip.list_models()``, ``"emoji-resnet"`` (a small one for the embedded
            benchmark), ``"hf-hub:..."``, ``"local-dir:..."``, or the path of an open_clip JSON config.
        pretrained: a tag from ``open_clip.list_pretrained()`` or the path of a checkpoint; ``None`` starts
            from random weights.
        gradient_checkpointing: trade a second forward pass for memory.

    Raises:
        ValueError: if the model is unknown, with the nearest names; or the JSON config is not one.
        FileNotFoundError: if ``model`` is the path of a config that is not there.

    Example:
        >>> encoder = OpenClipEncoder("ViT-B-32")                       # doctest: +SKIP
        >>> batch = encoder.collate([Sample(text="a cat")])             # doctest: +SKIP
        >>> encoder(**batch).shape                                      # doctest: +SKIP
        torch.Size([1, 512])
    """

    def __init__(
        self, model: str, pretrained: str | None = None, gradient_checkpointing: bool = False
    ) -> None:
        super().__init__()
        import open_clip

        name = _register(model)
        self.model = model
        self.pretrained = pretrained
        self.gradient_checkpointing = gradient_checkpointing
        self.clip, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        # The loss owns the temperature; here it would only be a parameter without a gradient.
        for unused in ("logit_scale", "logit_bias"):
            parameter = getattr(self.clip, unused, None)
            if parameter is not None:
                parameter.requires_grad_(False)
        if gradient_checkpointing:
            self.clip.set_grad_checkpointing(True)
        self.collate = _OpenClipCollate(transform, open_clip.get_tokenizer(name))
        self.embedding_dim = open_clip.get_model_config(name)["embed_dim"]

    def forward(  # type: ignore[override]
        self,
        kind: Tensor,
        input_ids: Tensor | None = None,
        text_index: Tensor | None = None,
        text_rows: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_rows: Tensor | None = None,
    ) -> Tensor:
        """Embed a collated batch of B samples, of which T hold a text and P a picture.

        Args:
            kind: (B,), 1 for a text, 2 for a picture, 3 for both.
            input_ids: (U, L), the different texts.
            text_index: (T,), which of them each text is.
            text_rows: (T,), the row of each text.
            pixel_values: (P, 3, H, W).
            image_rows: (P,), the row of each picture.

        Returns:
            (B, D): unit vectors, or the sum of two of them.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        if input_ids is not None and text_index is not None and text_rows is not None:
            text = F.normalize(self.clip.encode_text(input_ids, normalize=False), dim=1)
            parts.append((text_rows, text[text_index]))
        if pixel_values is not None and image_rows is not None:
            parts.append(
                (image_rows, F.normalize(self.clip.encode_image(pixel_values, normalize=False), dim=1))
            )
        first = parts[0][1]
        out = first.new_zeros(len(kind), first.shape[1])
        for rows, values in parts:
            out = out.index_add(0, rows, values.to(out.dtype))
        return out


@dataclass(frozen=True)
class _OpenClipCollate:
    """Samples to the arguments of :meth:`OpenClipEncoder.forward`; equal texts are tokenised once."""

    transform: Callable[[Any], Tensor]
    tokenizer: Callable[[list[str]], Tensor]

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        if not samples:
            raise ValueError("there are no samples to collate")
        if any(len(sample.images) > 1 for sample in samples):
            raise ValueError("a two-tower encoder takes one picture a sample, got several")
        text_rows = [row for row, sample in enumerate(samples) if sample.text]
        image_rows = [row for row, sample in enumerate(samples) if sample.images]
        kind = torch.zeros(len(samples), dtype=torch.uint8)
        kind[text_rows] += HAS_TEXT
        kind[image_rows] += HAS_IMAGE
        batch = {"kind": kind}
        if text_rows:
            order = {text: i for i, text in enumerate(dict.fromkeys(samples[row].text for row in text_rows))}
            batch["input_ids"] = self.tokenizer(list(order))
            batch["text_index"] = torch.tensor([order[samples[row].text] for row in text_rows])
            batch["text_rows"] = torch.tensor(text_rows)
        if image_rows:
            batch["pixel_values"] = torch.stack([self.transform(samples[row].image) for row in image_rows])
            batch["image_rows"] = torch.tensor(image_rows)
        return batch


def _register(model: str) -> str:
    """The name by which open_clip knows the model; a path is registered first, an unknown name refused."""
    import difflib

    import open_clip

    if model.startswith(("hf-hub:", "local-dir:")):
        return model
    open_clip.add_model_config(_OWN_CONFIGS)
    if model.endswith(".json"):
        path = Path(model)
        if not path.is_file():
            raise FileNotFoundError(f"no open_clip config at {model!r}")
        open_clip.add_model_config(path)
        if path.stem not in open_clip.list_models():
            raise ValueError(
                f"{model!r} is no open_clip config: it needs the keys 'embed_dim', 'vision_cfg', 'text_cfg'"
            )
        return path.stem
    known = open_clip.list_models()
    if model not in known:
        near = ", ".join(difflib.get_close_matches(model, known, 3)) or "see open_clip.list_models()"
        raise ValueError(f"open_clip knows no model {model!r}; the nearest: {near}")
    return model
