"""What two-tower encoders share: each tower runs once per batch, and their unit vectors are added."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property

import torch
from PIL.Image import Image, new
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fanoise_lightning.encoders.eight_bit import to_floats
from fanoise_lightning.encoders.plain_text import short
from fanoise_lightning.encoders.pretrained import PretrainedEncoder
from fanoise_lightning.pixels import upright_rgb
from fanoise_lightning.sample import IMAGE_PLACEHOLDER, Sample

__all__ = ["HAS_IMAGE", "HAS_TEXT", "TowerCollate", "TwoTowers", "add_rows", "text_alone"]

HAS_TEXT, HAS_IMAGE = 1, 2

_TEXT_INPUTS = ("input_ids", "attention_mask")
_TEXT_NAMES = (*_TEXT_INPUTS, "text_index", "text_rows")
_SPACED_PLACEHOLDER = re.compile(rf"\s*{IMAGE_PLACEHOLDER.pattern}\s*")
_LONGEST = 16  # times as long as wide; no photograph is longer


class TwoTowers(PretrainedEncoder):
    """The sum of the unit vectors of a sample's text and image, or the unit vector of the one that it has.

    A subclass implements :meth:`encode_text` and :meth:`encode_image`.
    """

    collate: TowerCollate

    def encode_text(self, **inputs: Tensor) -> Tensor:
        """Vectors (U, D) of any norm for the U different texts of a batch."""
        raise NotImplementedError

    def encode_image(self, **inputs: Tensor) -> Tensor:
        """Vectors (P, D) of any norm for the P images of a batch."""
        raise NotImplementedError

    def forward(  # type: ignore[override]
        self,
        kind: Tensor,
        text_index: Tensor | None = None,
        text_rows: Tensor | None = None,
        image_rows: Tensor | None = None,
        dummy: Tensor | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """Embed a collated batch of B samples, of which T have a text and P have an image.

        Args:
            kind: (B,), 1 for a text, 2 for an image, 3 for both.
            text_index: (T,), which of the U different texts each text is.
            text_rows: (T,), the row of each text.
            image_rows: (P,), the row of each image.
            dummy: given if the image is not part of the batch, so that batch norm does not learn from it.
            inputs: ``input_ids`` and, for some families, ``attention_mask``, both (U, L); and what the
                image tower takes: ``pixel_values`` (P, 3, H, W), or ``pixels`` of 8 bits and the ``levels``
                that normalise them, see :meth:`TowerCollate.to_floats`; or SigLIP 2's patches, mask and grid.

        Returns:
            (B, D), float32: unit vectors, or the sum of two of them.
        """
        text = {name: value for name, value in inputs.items() if name in _TEXT_INPUTS}
        image = {name: value for name, value in inputs.items() if name not in _TEXT_INPUTS}
        parts: list[tuple[Tensor, Tensor]] = []
        if text_index is not None and text_rows is not None:
            parts.append((text_rows, F.normalize(self.encode_text(**text).float(), dim=1)[text_index]))
        if image_rows is not None:
            with nullcontext() if dummy is None else _fixed_statistics(self):
                parts.append((image_rows, F.normalize(self.encode_image(**to_floats(image)).float(), dim=1)))
        return add_rows(len(kind), parts)

    def parts(self, batch: dict[str, Tensor]) -> tuple[bool, ...]:
        """Whether the text tower and the image tower run."""
        return "text_rows" in batch, "image_rows" in batch

    def add_row(self, batch: dict[str, Tensor], parts: tuple[bool, ...]) -> dict[str, Tensor]:
        text, image = parts
        kind = batch.get("kind", torch.empty(0, dtype=torch.uint8))
        last = torch.tensor([len(kind)])
        row = self._smallest_sample | {"text_rows": last, "image_rows": last}
        del row["kind"]
        wanted = {n: v.to(kind.device) for n, v in row.items() if (text if n in _TEXT_NAMES else image)}
        kind = torch.cat([kind, kind.new_tensor([HAS_TEXT * text + HAS_IMAGE * image])])
        return {**batch, "kind": kind, **wanted} | ({"dummy": last} if image else {})

    @cached_property
    def _smallest_sample(self) -> dict[str, Tensor]:
        with torch.inference_mode(False):  # an evaluation may build it, and training use it next
            return self.collate([Sample("a", new("RGB", (8, 8)))])

    def freeze(self, network: nn.Module, names: Sequence[str]) -> None:
        """Freeze the parameters whose names start with one of these regular expressions.

        An embedding does not use them, and DDP does not train with a parameter that gets no gradient.
        """
        for name, parameter in network.named_parameters():
            if any(re.match(pattern, name) for pattern in names):
                parameter.requires_grad_(False)

    def report_towers(self, model: str, context_length: int) -> None:
        """Print how many parameters are trained and where texts are cut."""
        self.report(model, f"; texts are cut after {context_length} tokens")


def add_rows(count: int, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The sums (count, D) of vectors, from the rows (n,) and the vectors (n, D) of each part."""
    out = parts[0][1].new_zeros(count, parts[0][1].shape[1])
    for rows, vectors in parts:
        out = out.index_add(0, rows, vectors)
    return out


@contextmanager
def _fixed_statistics(encoder: nn.Module) -> Iterator[None]:
    """Batch norm as in evaluation, except synchronised batch norm: the other ranks would wait for it."""
    norms = [
        part
        for part in encoder.modules()
        if isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm) and part.training
    ]
    for part in norms:
        part.eval()
    try:
        yield
    finally:
        for part in norms:
            part.train()


class TowerCollate:
    """Turns samples into the arguments of :meth:`TwoTowers.forward`; equal texts are encoded once.

    A subclass implements :meth:`tokenize` and :meth:`transform`. Places such as ``<|image_1|>`` are removed
    from the text of a sample with an image: no tower sees both.

    Args:
        center_crop: whether images are scaled by their shorter edge and cropped to the middle.

    Attributes:
        context_length: the tokens after which a text is cut.
    """

    context_length: int

    def __init__(self, center_crop: bool) -> None:
        self.center_crop = center_crop

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """The inputs of the text tower, U rows."""
        raise NotImplementedError

    def transform(self, images: list[Image]) -> dict[str, Tensor]:
        """The inputs of the image tower, P rows: ``pixel_values``, or ``pixels`` for :meth:`to_floats`."""
        raise NotImplementedError

    @staticmethod
    def to_floats(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch with ``pixel_values`` in float32 instead of ``pixels`` in 8 bits, on their device."""
        return to_floats(inputs)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Collate B samples.

        Raises:
            ValueError: if there are none; or if a sample has several images, a placeholder without an
                image, several placeholders, or an image whose values are not 8-bit colours.
        """
        if not samples:
            raise ValueError("there are no samples to collate")
        if any(len(sample.images) > 1 for sample in samples):
            raise ValueError("a two-tower encoder takes one image per sample, got several")
        texts = {row: text for row, sample in enumerate(samples) if (text := text_alone(sample))}
        images = {row: self.prepare(sample.images[0]) for row, sample in enumerate(samples) if sample.images}
        kind = torch.zeros(len(samples), dtype=torch.uint8)
        kind[list(texts)] += HAS_TEXT
        kind[list(images)] += HAS_IMAGE
        batch = {"kind": kind}
        if texts:
            order = {text: i for i, text in enumerate(dict.fromkeys(texts.values()))}
            batch |= self.tokenize(list(order))
            batch["text_index"] = torch.tensor([order[text] for text in texts.values()])
            batch["text_rows"] = torch.tensor(list(texts))
        if images:
            batch |= self.transform(list(images.values()))
            batch["image_rows"] = torch.tensor(list(images))
        return batch

    def prepare(self, image: Image) -> Image:
        """An image as :meth:`transform` takes it."""
        image = upright_rgb(image)
        return _without_ends(image) if self.center_crop else image


def text_alone(sample: Sample) -> str:
    """The text of a sample without its image's placeholder."""
    places = IMAGE_PLACEHOLDER.findall(sample.text)
    if not places:
        return sample.text
    if sample.image is None:
        raise ValueError(
            f"the text {short(sample.text)} has a placeholder <|image_{places[0]}|>, but the sample has no "
            "image: remove it, or add the image"
        )
    if places != ["1"]:
        names = ", ".join(f"<|image_{place}|>" for place in places)
        raise ValueError(
            f"the text {short(sample.text)} has {names}, but a two-tower encoder sees the one image of a "
            "sample once: keep a single <|image_1|>, or no placeholder"
        )
    return _SPACED_PLACEHOLDER.sub(" ", sample.text).strip()


def _without_ends(image: Image) -> Image:
    """The middle of a long strip: scaled by its shorter edge, 1x5000 pixels would become 224x1120000."""
    width, height = image.size
    longest = _LONGEST * min(width, height)
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image
