"""The processor of Phi-3.5-vision: from texts with ``<|image_1|>`` placeholders and images to inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from fanoise_lightning.encoders.phi3_vision.image_processing import Phi3VImageProcessor
from fanoise_lightning.sample import IMAGE_PLACEHOLDER

__all__ = ["Phi3VProcessor"]

Images = Image.Image | Sequence["Image.Image | Sequence[Image.Image] | None"] | None


class Phi3VProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {  # type: ignore[misc]  # noqa: RUF012
        "text_kwargs": {"padding": True},
        "common_kwargs": {"return_tensors": "pt"},
    }


class Phi3VProcessor(ProcessorMixin):
    """Joins the image processor and the tokenizer of Phi-3.5-vision.

    ``<|image_i|>`` in a text stands for the i-th image of its row, counted from 1, and becomes as many ids
    -i as the image has tokens. The pieces of text around the placeholders are tokenized one
    by one, each with the tokenizer's special tokens, even an empty one, as the model was trained.

    Args:
        image_processor: a ``Phi3VImageProcessor``.
        tokenizer: the model's tokenizer.
        chat_template: kept for ``apply_chat_template``.

    Example:
        >>> batch = processor(text=["<|image_1|> a cat", "a dog"], images=[cat, None])  # doctest: +SKIP
        >>> sorted(batch)  # doctest: +SKIP
        ['attention_mask', 'image_sizes', 'input_ids', 'pixel_values']
    """

    valid_processor_kwargs = Phi3VProcessorKwargs

    def __init__(
        self,
        image_processor: Phi3VImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def model_input_names(self) -> list[str]:
        """The keys of what a call returns; the last two only if there are images."""
        return ["input_ids", "attention_mask", "pixel_values", "image_sizes"]

    def __call__(self, text: str | Sequence[str], images: Images = None, **kwargs: Any) -> BatchFeature:
        """The inputs of ``Phi3VModel`` for B rows.

        Args:
            text: one text or B texts.
            images: the images: B entries, each None, an image or a list of the row's images in the order of
                their numbers; or a flat list of all images, dealt out to the rows by their placeholders.
            **kwargs: ``padding`` (True by default), ``padding_side``, ``max_length``, ``truncation``,
                ``num_crops``, ``return_tensors`` ("pt" by default), and whatever else the tokenizer takes.
                Truncation never cuts a row with images.

        Returns:
            ``input_ids`` and ``attention_mask`` (B, L); with n > 0 images, ``pixel_values``
            (n, num_crops + 1, 3, 336, 336) and ``image_sizes`` (n, 2).

        Raises:
            TypeError: if texts or images are something else.
            ValueError: if placeholders and images do not match (the message names the row), if a row has
                neither text nor image, or if ``num_crops`` is not a positive integer.
        """
        texts: list[str] = list(text) if isinstance(text, list | tuple) else [text]  # type: ignore[list-item]
        if not texts:
            raise ValueError("there is no text; expected one per row, at least its images' placeholders.")
        for row, item in enumerate(texts):
            if not isinstance(item, str):
                kind = type(item).__name__
                raise TypeError(f"text {row} is a {kind}; call processor(text=..., images=...).")
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        placeholders = [[int(number) for number in IMAGE_PLACEHOLDER.findall(item)] for item in texts]
        dealt = _deal_images(images, placeholders)
        _check_placeholders(placeholders, dealt)

        flat = [image for row in dealt for image in row]
        vision: dict[str, Any] = {}
        num_tokens: list[int] = []
        if flat:
            vision = dict(self.image_processor(flat, **merged["images_kwargs"]))
            num_tokens = [int(count) for count in vision.pop("num_img_tokens")]
        ids = self._input_ids(texts, placeholders, num_tokens, merged["text_kwargs"])
        return BatchFeature({**self._pad(ids, merged["text_kwargs"]), **vision})

    def _input_ids(
        self, texts: list[str], placeholders: list[list[int]], num_tokens: list[int], options: dict[str, Any]
    ) -> list[list[int]]:
        """The ids of each row; those of an image, ``num_tokens`` row by row, replace its placeholder."""
        limits = {key: options[key] for key in ("truncation", "max_length") if key in options}
        plain = iter(self._tokenize([t for t, row in zip(texts, placeholders) if not row], options, **limits))
        # splitting leaves the placeholders' numbers between the pieces
        pieces = [IMAGE_PLACEHOLDER.split(t)[::2] for t, row in zip(texts, placeholders) if row]
        chunks = iter(self._tokenize([piece for row in pieces for piece in row], options))

        rows, first = [], 0
        for row, numbers in enumerate(placeholders):
            ids = list(next(chunks) if numbers else next(plain))
            for number in numbers:
                ids += [-number] * num_tokens[first + number - 1] + next(chunks)
            first += len(numbers)
            if not ids:
                raise ValueError(f"row {row} is empty: no image, and its text {texts[row]!r} has no token.")
            rows.append(ids)
        return rows

    def _tokenize(self, texts: list[str], options: dict[str, Any], **limits: Any) -> list[list[int]]:
        special = options.get("add_special_tokens", True)
        return self.tokenizer(texts, add_special_tokens=special, **limits).input_ids if texts else []

    def _pad(self, ids: list[list[int]], options: dict[str, Any]) -> dict[str, Any]:
        keys = ["padding", "padding_side", "pad_to_multiple_of", "return_tensors"]
        if options["padding"] == "max_length":
            keys.append("max_length")
        data = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
        return dict(self.tokenizer.pad(data, **{key: options[key] for key in keys if key in options}))


def _deal_images(images: Images, placeholders: list[list[int]]) -> list[list[Any]]:
    """The images of each row."""
    if images is None:
        return [[] for _ in placeholders]
    items = [images] if isinstance(images, Image.Image) else list(images)
    if any(not isinstance(item, Image.Image) for item in items):  # one entry a row
        if len(items) != len(placeholders):
            raise ValueError(
                f"images has {len(items)} entries for {len(placeholders)} texts; expected one per text."
            )
        return [_as_list(item) for item in items]
    wanted = [len(row) for row in placeholders]
    if sum(wanted) != len(items):
        raise ValueError(
            f"{len(items)} images for {sum(wanted)} <|image_i|> placeholders (in each text: {wanted}): "
            "every image needs one placeholder, and every placeholder an image."
        )
    rest = iter(items)
    return [[next(rest) for _ in range(count)] for count in wanted]


def _as_list(item: Any) -> list[Any]:
    if item is None:
        return []
    return list(item) if isinstance(item, list | tuple) else [item]


def _check_placeholders(placeholders: list[list[int]], images: list[list[Any]]) -> None:
    """Check that each row names each of its images once."""
    for row, (numbers, given) in enumerate(zip(placeholders, images)):
        names = ", ".join(f"<|image_{number}|>" for number in numbers) or "no placeholder"
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"row {row} has {names}: each may appear only once; pass the image twice.")
        if len(numbers) != len(given):
            raise ValueError(f"row {row} has {len(given)} images and {names}: each needs the other.")
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            raise ValueError(f"row {row} has {names}: expected the numbers 1 to {len(numbers)}.")
