"""From samples to what a vision-language model reads: one processor call a batch, no weights."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from fanoise_lightning.encoders.families import find_family
from fanoise_lightning.encoders.pictures import (
    ImageSize,
    configure_pictures,
    resize,
    square_side,
    upright_rgb,
)
from fanoise_lightning.encoders.prompts import cut, write_prompt
from fanoise_lightning.sample import Sample

__all__ = ["VisionLanguageCollate"]


class VisionLanguageCollate:
    """Samples to the arguments of :meth:`VisionLanguageEncoder.forward`; the arguments are described there.

    Loads the config, the tokenizer and the picture processor alone.

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
        bare_markers: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        from transformers import AutoProcessor

        self.family = find_family(model, trust_remote_code)
        remote = not self.family.marker
        self.processor = AutoProcessor.from_pretrained(model, trust_remote_code=remote)
        self.side = square_side(image_size)
        configure_pictures(self.processor, self.family, self.side, max_pixels, num_crops)
        self.max_length = max_length
        self.max_text_length = min((n for n in (max_length, max_text_length) if n is not None), default=None)
        self.marker = self.processor.image_token if remote else self.family.marker
        if bare_markers:
            if self.family.bare_marker is None:
                raise ValueError(f"`positions='vlm2vec'` is a recipe of Qwen2-VL, not of {self.family.name}")
            self.marker = self.family.bare_marker
        self.end = self.processor.tokenizer.eos_token if append_eos else ""
        if self.end is None:
            raise ValueError(f"the tokenizer of {model!r} has no EOS token: take `pooling='last'`")
        if self.side and max_length and (tokens := self.picture_tokens(self.side, self.side)) >= max_length:
            raise ValueError(
                f"a picture of {self.side}x{self.side} has {tokens} tokens: `max_length={max_length}` would "
                "cut away the prompt; raise it, or take a smaller `image_size`"
            )

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """One batch.

        Raises:
            ValueError: if a sample cannot be encoded as it is; the message names its row.
        """
        if not samples:
            raise ValueError("there are no samples to collate")
        prompts: list[str] = []
        pictures: list[Image.Image] = []
        for row, sample in enumerate(samples):
            try:
                prompt, images = self._prompt(sample)
            except ValueError as error:
                raise ValueError(f"row {row} of the batch: {error}") from error
            prompts.append(prompt)
            pictures += images
        batch = self._process(prompts, pictures)
        self._check_lengths(samples, batch)
        return batch

    def picture_tokens(self, width: int, height: int) -> int:
        """How many tokens a picture of this size in pixels becomes."""
        prompt, images = self._prompt(Sample(image=Image.new("RGB", (width, height))))
        ids = self._process([prompt], images)["input_ids"]
        return int(((ids == getattr(self.processor, "image_token_id", None)) | (ids < 0)).sum())

    def _prompt(self, sample: Sample) -> tuple[str, list[Image.Image]]:
        prompt, images = write_prompt(sample, self.family, self.marker)
        images = [upright_rgb(image) for image in images]
        if self.side is not None:
            images = [resize(image, self.side) for image in images]
        if not images and self.max_text_length is not None:
            tokenizer = self.processor.tokenizer
            prompt = cut(prompt, self.max_text_length - bool(self.end), tokenizer)
        return prompt + self.end, images

    def _process(self, prompts: list[str], pictures: list[Image.Image]) -> dict[str, Tensor]:
        try:
            batch = self.processor(text=prompts, images=pictures or None, padding=True, return_tensors="pt")
        except Exception as error:  # of many kinds; none says which picture it was
            for picture in pictures:
                self._check_picture(picture)
            raise ValueError(f"the processor of {self.family.name} refused the batch: {error}") from error
        return dict(batch)

    def _check_picture(self, picture: Image.Image) -> None:
        try:
            self.processor.image_processor([picture], return_tensors="pt")
        except Exception as error:
            raise ValueError(
                f"{self.family.name} cannot take a picture of {picture.width}x{picture.height}: {error}"
            ) from error

    def _check_lengths(self, samples: Sequence[Sample], batch: dict[str, Tensor]) -> None:
        lengths: list[int] = batch["attention_mask"].sum(dim=1).tolist()
        for row, (sample, length) in enumerate(zip(samples, lengths)):
            if length == 0:
                raise ValueError(f"row {row} of the batch: the text {sample.text!r} has no tokens")
            if sample.images and self.max_length is not None and length > self.max_length:
                raise ValueError(
                    f"row {row} of the batch: a prompt with {len(sample.images)} picture(s) has {length} "
                    f"tokens, more than `max_length={self.max_length}`, which would cut it: raise it, or "
                    "make the pictures smaller"
                )
