"""From samples to the inputs of a vision-language model: one processor call per batch, no weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from fanoise_lightning.encoders.families import find_family
from fanoise_lightning.encoders.images import ImageSize, configure_images, resize, square_edge
from fanoise_lightning.encoders.loading import load_processor
from fanoise_lightning.encoders.plain_text import PlainTexts, short
from fanoise_lightning.encoders.prompts import cut, write_prompt
from fanoise_lightning.pixels import upright_rgb
from fanoise_lightning.sample import Sample

__all__ = ["VisionLanguageCollate"]

_LONGEST = 50  # times as long as wide; processors may refuse longer images


@dataclass(frozen=True)
class _Reader:
    """A processor, with the placeholder of an image and the end of a prompt in the texts that it reads."""

    processor: Any
    placeholder: str
    end: str


class VisionLanguageCollate:
    """Turns samples into the arguments of :meth:`VisionLanguageEncoder.forward`.

    It loads only the config, the tokenizer and the image processor; :class:`VisionLanguageEncoder` describes
    the arguments.

    Example:
        >>> collate = VisionLanguageCollate("Qwen/Qwen2-VL-2B-Instruct")          # doctest: +SKIP
        >>> sorted(collate([Sample("a cat"), Sample("a dog")]))                   # doctest: +SKIP
        ['attention_mask', 'input_ids', 'mm_token_type_ids']
    """

    def __init__(
        self,
        model: str,
        *,
        image_size: ImageSize | None = None,
        max_pixels: int | None = None,
        num_crops: int | None = None,
        max_length: int | None = None,
        max_text_length: int | None = None,
        append_eos: bool = False,
        bare_placeholders: bool = False,
        trust_remote_code: bool = False,
        split_special_tokens: bool = True,
    ) -> None:
        self.family = find_family(model, trust_remote_code)
        remote = not self.family.placeholder
        self.processor = load_processor(model, trust_remote_code=remote)
        self.edge = square_edge(image_size)
        configure_images(self.processor, self.family, self.edge, max_pixels, num_crops)
        self.max_length = max_length
        self.max_text_length = min((n for n in (max_length, max_text_length) if n is not None), default=None)
        self.placeholder = self.processor.image_token if remote else self.family.placeholder
        if bare_placeholders:
            if self.family.bare_placeholder is None:
                raise ValueError(f"`positions='vlm2vec'` is a recipe of Qwen2-VL, not of {self.family.name}")
            self.placeholder = self.family.bare_placeholder
        self.end = self.processor.tokenizer.eos_token if append_eos else ""
        if self.end is None:
            raise ValueError(f"the tokenizer of {model!r} has no EOS token: pass `pooling='last'`")
        self.split_special_tokens = split_special_tokens
        self.texts = PlainTexts(self.processor.tokenizer, also=self.family.reserved)
        if self.edge and max_length and (tokens := self.image_tokens(self.edge, self.edge)) >= max_length:
            raise ValueError(
                f"an image of {self.edge}x{self.edge} has {tokens} tokens: `max_length={max_length}` leaves "
                "no room for a prompt; raise it, or choose a smaller `image_size`"
            )

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Collate B samples.

        Raises:
            ValueError: if a sample cannot be encoded; the message names its row.
        """
        if not samples:
            raise ValueError("there are no samples to collate")
        named = {row: name for row, sample in enumerate(samples) if (name := self.texts.find(sample.text))}
        reader = self._reader(samples, named)
        prompts: list[str] = []
        images: list[Image.Image] = []
        for row, sample in enumerate(samples):
            try:
                prompt, own = self._prompt(sample, reader)
            except ValueError as error:
                raise ValueError(f"row {row} of the batch: {error}") from error
            prompts.append(prompt)
            images += own
        batch = self._process(prompts, images, reader)
        self._check_lengths(samples, batch)
        return batch

    def check(self, sample: Sample) -> None:
        """Find out whether a sample can be encoded, at less cost than collating it.

        Raises:
            ValueError: if it cannot; problems with its number of tokens only show when it is collated.
        """
        name = self.texts.find(sample.text)
        self._prompt(sample, self._reader([sample], {0: name} if name else {}))

    def image_tokens(self, width: int, height: int) -> int:
        """How many tokens an image of this width and height in pixels becomes."""
        reader = self._reader([], {})
        prompt, images = self._prompt(Sample(image=Image.new("RGB", (width, height))), reader)
        ids = self._process([prompt], images, reader)["input_ids"]
        return int(((ids == getattr(self.processor, "image_token_id", None)) | (ids < 0)).sum())

    def _reader(self, samples: Sequence[Sample], named: dict[int, str]) -> _Reader:
        """The reader of a batch, given the rows whose texts name a special token."""
        if named and self.split_special_tokens:
            if self.family.placeholder and self.processor.tokenizer.is_fast:
                return self._plain_reader
            row, name = next(iter(named.items()))
            raise ValueError(
                f"row {row} of the batch: the text {short(samples[row].text)} holds {name!r}, a special "
                f"token that the processor of {self.family.name} cannot read as text: remove it, or pass "
                "`split_special_tokens=False` to let it act"
            )
        for row, sample in enumerate(samples if named else ()):
            for token in self.family.reserved:
                if token in sample.text:
                    raise ValueError(
                        f"row {row} of the batch: the text {short(sample.text)} holds {token!r}, which in "
                        f"{self.family.name} is an image's placeholder: write <|image_1|>, or remove it"
                    )
        return _Reader(self.processor, self.placeholder, self.end)

    @property
    def _plain_reader(self) -> _Reader:
        """The processor with a tokenizer whose special tokens have names that no text holds."""
        processor = copy.copy(self.processor)
        processor.tokenizer = self.texts.plain
        for name in ("image_token", "video_token", "audio_token"):
            if (token := getattr(processor, name, None)) is not None:
                setattr(processor, name, self.texts.rename(token))
        return _Reader(processor, self.texts.rename(self.placeholder), self.texts.rename(self.end))

    def _prompt(self, sample: Sample, reader: _Reader) -> tuple[str, list[Image.Image]]:
        prompt, images = write_prompt(sample, reader.placeholder)
        images = [upright_rgb(image) for image in images]
        if self.edge is not None:
            images = [resize(image, self.edge) for image in images]
        for image in images:
            if max(image.size) > _LONGEST * min(image.size):  # before the batch is processed for nothing
                self._check_image(image)
        if not images and self.max_text_length is not None:
            tokenizer = reader.processor.tokenizer
            end_tokens = 1 if reader.end else 0
            prompt = cut(prompt, self.max_text_length - end_tokens, tokenizer)
        return prompt + reader.end, images

    def _process(self, prompts: list[str], images: list[Image.Image], reader: _Reader) -> dict[str, Tensor]:
        try:
            batch = reader.processor(text=prompts, images=images or None, padding=True, return_tensors="pt")
        except Exception as error:  # of any kind, and none names the image
            for image in images:
                self._check_image(image)
            raise ValueError(f"the processor of {self.family.name} refused the batch: {error}") from error
        return dict(batch)

    def _check_image(self, image: Image.Image) -> None:
        try:
            self.processor.image_processor([image], return_tensors="pt")
        except Exception as error:
            raise ValueError(
                f"{self.family.name} cannot take an image of {image.width}x{image.height}: {error}"
            ) from error

    def _check_lengths(self, samples: Sequence[Sample], batch: dict[str, Tensor]) -> None:
        lengths: list[int] = batch["attention_mask"].sum(dim=1).tolist()
        for row, (sample, length) in enumerate(zip(samples, lengths)):
            if length == 0:
                raise ValueError(f"row {row} of the batch: the text {sample.text!r} has no tokens")
            if sample.images and self.max_length is not None and length > self.max_length:
                raise ValueError(
                    f"row {row} of the batch: a prompt with {len(sample.images)} image(s) has {length} "
                    f"tokens, more than `max_length={self.max_length}`, which would cut it: raise it, or "
                    "make the images smaller"
                )
