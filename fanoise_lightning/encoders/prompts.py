"""From a sample to the text that a processor reads, with its images in the order of their placeholders."""

from __future__ import annotations

from typing import Any

from PIL.Image import Image

from fanoise_lightning.encoders.plain_text import short
from fanoise_lightning.sample import IMAGE_PLACEHOLDER, Sample

__all__ = ["cut", "write_prompt"]


def write_prompt(sample: Sample, placeholder: str) -> tuple[str, list[Image]]:
    """A sample's text with the family's placeholders, and its images in the order of these placeholders.

    ``<|image_1|>``, ``<|image_2|>``, ... in the text are the placeholders of the images, in any order,
    each at least once. If a text has none, the images come first, separated by spaces.

    Args:
        sample: a text, images, or both.
        placeholder: what stands for an image; ``{i}`` is its number, from 1.

    Raises:
        ValueError: if a placeholder has no image or an image has no placeholder.

    Example:
        >>> write_prompt(Sample("a cat"), "<image>")
        ('a cat', [])
    """
    text, images = sample.text, sample.images
    places = [int(number) for number in IMAGE_PLACEHOLDER.findall(text)]
    if not places:
        places = list(range(1, len(images) + 1))
        text = " ".join([*(f"<|image_{place}|>" for place in places), *([text] if text else [])])
    elif missing := sorted(set(places) - set(range(1, len(images) + 1))):
        raise ValueError(
            f"the text {short(text)} has a placeholder <|image_{missing[0]}|>, but the sample has "
            f"{len(images)} image(s): remove it, or add the image"
        )
    elif unplaced := sorted(set(range(1, len(images) + 1)) - set(places)):
        raise ValueError(
            f"image {unplaced[0]} of {len(images)} has no placeholder in the text {short(text)}, where "
            f"others have one: add <|image_{unplaced[0]}|>, or remove all of them to put the images first"
        )
    # numbered in the order of the text: processors hand out the images in that order
    numbers = iter(range(1, len(places) + 1))
    prompt = IMAGE_PLACEHOLDER.sub(lambda _: placeholder.replace("{i}", str(next(numbers))), text)
    return prompt, [images[place - 1] for place in places]


def cut(text: str, limit: int, tokenizer: Any) -> str:
    """The longest beginning of a text that has at most `limit` tokens, special ones included.

    Raises:
        ValueError: if `limit` leaves no room for a token of the text.
    """
    room = limit - tokenizer.num_special_tokens_to_add()
    if room < 1:
        raise ValueError(f"a maximum length of {limit} leaves no room for a text, got {short(text)}")
    if len(text.encode()) < room:  # a token covers at least one byte
        return text
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(spans) <= room:
        return text
    while room > 1 and spans[room][0] < spans[room - 1][1]:  # inside a character of several tokens
        room -= 1
    return text[: spans[room - 1][1]]
