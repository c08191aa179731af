"""The chat template renders the prompt that the encoder's collate writes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_image
from transformers.utils.chat_template_utils import render_jinja_template

from fanoise_lightning import Sample
from fanoise_lightning.encoders.families import FAMILIES
from fanoise_lightning.encoders.prompts import write_prompt
from fanoise_lightning.export.chat_template import chat_template

PLACEHOLDERS = [*(family.placeholder for family in FAMILIES.values()), "<|image_pad|>"]
IMAGE = make_image(8, 8)
texts = st.text(st.sampled_from("ab '\"{}%#\\\n\t<|>é"), max_size=20)


def render(
    placeholder: str, text: str, images: int, prompt: str = "", end: str = "", first: str = "image"
) -> str:
    parts: list[dict[str, Any]] = [{"type": "image", "image": IMAGE}] * images
    written = [{"type": "text", "text": text}] if text else []
    content = parts + written if first == "image" else written + parts
    system = [{"role": "system", "content": [{"type": "text", "text": prompt}]}] if prompt else []
    messages = [*system, {"role": "user", "content": content}]
    (rendered,), _ = render_jinja_template([messages], chat_template=chat_template(placeholder, end))
    return rendered


@given(st.sampled_from(PLACEHOLDERS), texts, st.integers(0, 3), texts, st.sampled_from(["image", "text"]))
def test_it_is_the_prompt_of_the_collate(
    placeholder: str, text: str, images: int, prompt: str, first: str
) -> None:
    if not text + prompt + "i" * images:
        return
    expected, _ = write_prompt(Sample(prompt + text, [IMAGE] * images or None), placeholder)
    assert render(placeholder, text, images, prompt, "</s>", first) == expected + "</s>"


@pytest.mark.parametrize("placeholder", PLACEHOLDERS)
@pytest.mark.parametrize("text", ["<|image_1|>\nWhat is it?", "is <|image_1|> like <|image_2|>, or not?"])
def test_places_in_the_text_are_those_of_the_images(placeholder: str, text: str) -> None:
    images = text.count("<|image_")
    expected, _ = write_prompt(Sample(text, [IMAGE] * images), placeholder)
    assert render(placeholder, text, images) == expected


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("a place <|image_1|>", 0),
        ("<|image_2|> and <|image_1|>", 2),  # the processor hands out images in the order that they are given
        ("only <|image_1|>", 2),
    ],
)
def test_what_would_be_read_otherwise_is_refused(text: str, images: int) -> None:
    with pytest.raises(Exception, match="<\\|image_1\\|>"):
        render("<image>", text, images)


def test_a_message_may_be_a_plain_string() -> None:
    messages = [{"role": "system", "content": "Find: "}, {"role": "user", "content": "a cat"}]
    (rendered,), _ = render_jinja_template([messages], chat_template=chat_template("<image>"))
    assert rendered == "Find: a cat"
