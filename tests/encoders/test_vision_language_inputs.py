"""Sizes, lengths and bad inputs: what comes before the forward."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tiny_models import BUILDERS, llava_next, make_image, tiny_tokenizer

from fanoise_lightning import Sample
from fanoise_lightning.encoders.families import FAMILIES
from fanoise_lightning.encoders.prompts import cut, write_prompt
from fanoise_lightning.encoders.vision_language_collate import VisionLanguageCollate
from fanoise_lightning.pixels import upright_rgb

families = pytest.mark.parametrize("family", sorted(BUILDERS))
qwens = pytest.mark.parametrize(("family", "token"), [("qwen2_vl", 28), ("qwen2_5_vl", 28), ("qwen3_vl", 32)])
CAT, DOG = make_image(60, 40, 0), make_image(50, 90, 1)


# Image size


@qwens
@pytest.mark.parametrize(("size", "side"), [(5, 5), (9, 9)])
def test_qwen_images_become_the_square_that_was_asked_for(tiny, family, token, size, side):
    collate = VisionLanguageCollate(tiny(family), image_size=size * token)
    batch = collate([Sample(image=DOG), Sample(image=make_image(700, 300))])
    assert batch["image_grid_thw"].tolist() == [[1, 2 * side, 2 * side]] * 2
    assert len(batch["pixel_values"]) == 2 * (2 * side) ** 2
    assert collate.image_tokens(10, 10) == side**2


@pytest.mark.parametrize(
    ("family", "low", "high"), [("qwen2_vl", 144, 2304), ("qwen2_5_vl", 144, 2304), ("qwen3_vl", 100, 1764)]
)
def test_named_resolutions_give_qwen_the_papers_tokens(tiny, family, low, high):
    assert VisionLanguageCollate(tiny(family), image_size="low").image_tokens(50, 90) == low
    assert VisionLanguageCollate(tiny(family), image_size="high").image_tokens(50, 90) == high


def test_the_recipes_square_and_limit_give_1225_tokens(tiny):
    collate = VisionLanguageCollate(tiny("qwen2_vl"), image_size="high", max_pixels=1280 * 28 * 28)
    assert collate.image_tokens(640, 480) == 1225


@qwens
def test_a_limit_of_pixels_keeps_the_aspect_ratio(tiny, family, token):
    collate = VisionLanguageCollate(tiny(family), max_pixels=8 * token**2)
    grid = collate([Sample(image=make_image(20 * token, 10 * token))])["image_grid_thw"]
    assert grid.tolist() == [[1, 4, 8]]  # 2 x 4 tokens


def test_a_square_reaches_llavas_tiles(tmp_path):
    model, processor = llava_next(side=336)
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    low = VisionLanguageCollate(str(tmp_path), image_size="low")
    batch = low([Sample(image=make_image(1000, 180))])
    assert batch["image_sizes"].tolist() == [[336, 336]]
    assert batch["pixel_values"].shape == (1, 3, 3, 336, 336)
    assert low.image_tokens(1000, 180) == 1176
    high = VisionLanguageCollate(str(tmp_path), image_size="high")
    batch = high([Sample(image=make_image(1000, 180))])
    assert batch["image_sizes"].tolist() == [[1344, 1344]]
    assert batch["pixel_values"].shape == (1, 5, 3, 336, 336)
    assert high.image_tokens(1000, 180) == 2928


def test_a_resized_square_holds_the_whole_image(tiny):
    """Red above blue in a wide image, red above blue in the square: it is not a crop."""
    wide = Image.new("RGB", (280, 56), "red")
    wide.paste("blue", (0, 28, 280, 56))
    square = Image.new("RGB", (112, 112), "red")
    square.paste("blue", (0, 56, 112, 112))
    collate = VisionLanguageCollate(tiny("qwen2_vl"), image_size=112)
    found, expected = (collate([Sample(image=image)])["pixel_values"] for image in (wide, square))
    assert (found - expected).abs().mean() < 0.1


# Lengths


@pytest.mark.parametrize("padding_side", ["left", "right"])
@families
def test_a_text_without_images_is_cut_at_its_end(tiny, family, padding_side):
    collate = VisionLanguageCollate(tiny(family), max_length=40)
    collate.processor.tokenizer.padding_side = padding_side
    specials = 1 if family in ("llava_next", "phi3_v") else 0
    batch = collate([Sample("a" * 20 + "b" * 1000), Sample("short")])
    ids = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    assert collate.processor.tokenizer.decode(ids[specials:]) == "a" * 20 + "b" * (20 - specials)
    assert batch["attention_mask"][1].sum() == 5 + specials


def test_a_text_limit_of_its_own_spares_the_images(tiny):
    collate = VisionLanguageCollate(tiny("qwen2_vl"), max_text_length=5)
    lengths = collate([Sample("a longer text"), Sample("a longer text", CAT)])["attention_mask"].sum(dim=1)
    assert lengths[0] == 5
    assert lengths[1] > len("a longer text")


def test_eos_survives_the_cut(tiny):
    collate = VisionLanguageCollate(tiny("qwen2_vl"), max_length=6, append_eos=True)
    (ids,) = collate([Sample("a longer text")])["input_ids"]
    assert collate.processor.tokenizer.decode(ids) == "a lon<|im_end|>"


def test_a_prompt_that_a_maximum_length_would_cut_away_is_an_error(tiny):
    sample = Sample("what is on the", CAT)  # 2 tokens of the image, 2 around it, a space, 14 characters
    assert VisionLanguageCollate(tiny("qwen2_vl"), max_length=19)([sample])["input_ids"].shape == (1, 19)
    with pytest.raises(ValueError, match=r"row 1 .* has 19 tokens, more than `max_length=18`"):
        VisionLanguageCollate(tiny("qwen2_vl"), max_length=18)([Sample("fine"), sample])


def test_images_that_fill_the_maximum_length_are_an_error_at_once(tiny):
    with pytest.raises(ValueError, match="1344x1344 has 2304 tokens: `max_length=2048`"):
        VisionLanguageCollate(tiny("qwen2_vl"), image_size="high", max_length=2048)


def test_a_cut_falls_between_characters_of_several_tokens():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)  # one token a byte
    text = "é€😀 and so on"  # 2, 3 and 4 bytes
    for limit, expected in [
        (20, "é€😀 and so on"),
        (10, "é€😀 "),
        (9, "é€😀"),
        (8, "é€"),
        (5, "é€"),
        (4, "é"),
    ]:
        assert cut(text, limit, tokenizer) == expected


def test_no_room_for_a_text_is_an_error():
    with pytest.raises(ValueError, match="a maximum length of 1 leaves no room for a text, got 'a cat'"):
        cut("a cat", 1, tiny_tokenizer(bos="<s>"))


# Markers and texts


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample("<|image_1|> a cat"), r"placeholder <\|image_1\|>, but the sample has 0 image"),
        (Sample("<|image_2|> a cat", CAT), r"placeholder <\|image_2\|>, but the sample has 1 image"),
        (Sample("<|image_0|> a cat", CAT), r"placeholder <\|image_0\|>"),
        (Sample("<|image_1|> a cat", (CAT, DOG)), r"image 2 of 2 has no placeholder .* add <\|image_2\|>"),
    ],
)
def test_a_placeholder_and_an_image_need_each_other(tiny, sample, message):
    with pytest.raises(ValueError, match=f"row 1 of the batch: .*{message}"):
        VisionLanguageCollate(tiny("llava_next"))([Sample("fine"), sample])


def test_placeholders_are_numbered_as_they_stand():
    prompt, images = write_prompt(
        Sample("<|image_2|> or <|image_1|>", (CAT, DOG)), FAMILIES["phi3_v"].placeholder
    )
    assert prompt == "<|image_1|> or <|image_2|>"
    assert images == [DOG, CAT]


def test_an_empty_text_with_an_image_is_the_image(tiny):
    collate = VisionLanguageCollate(tiny("qwen2_vl"))
    (ids,) = collate([Sample("", CAT)])["input_ids"]
    assert (
        collate.processor.tokenizer.decode(ids) == "<|vision_start|>" + "<|image_pad|>" * 2 + "<|vision_end|>"
    )


def test_a_sample_without_anything_is_refused():
    with pytest.raises(ValueError, match="needs a text, an image or both"):
        Sample("")


def test_a_text_without_tokens_is_an_error_that_names_its_row(tiny):
    from tokenizers import normalizers

    collate = VisionLanguageCollate(tiny("qwen2_vl"))
    collate.processor.tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    with pytest.raises(ValueError, match="row 1 of the batch: the text '  ' has no tokens"):
        collate([Sample("a cat"), Sample("  ")])


def test_an_empty_batch_is_refused(tiny):
    with pytest.raises(ValueError, match="no samples"):
        VisionLanguageCollate(tiny("qwen2_vl"))([])


# Images


@families
def test_an_image_of_one_pixel_is_fine(tiny, family):
    batch = VisionLanguageCollate(tiny(family))([Sample(image=make_image(1, 1))])
    assert batch["pixel_values"].isfinite().all()


@qwens
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_a_strip_that_qwen_cannot_take_is_named(tiny, family, token, size):
    collate = VisionLanguageCollate(tiny(family))
    with pytest.raises(
        ValueError, match=f"{FAMILIES[family].name} cannot take an image of {size[0]}x{size[1]}"
    ):
        collate([Sample(image=CAT), Sample(image=make_image(*size))])
    assert VisionLanguageCollate(tiny(family), image_size=4 * token).image_tokens(*size) == 16


def rgb_of(image: Image.Image) -> tuple[int, ...]:
    return upright_rgb(image).getpixel((0, 0))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "YCbCr", "HSV", "LAB"])
def test_colours_of_other_modes_stay_what_they_are(mode):
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    if mode == "LAB":
        image = Image.new("LAB", (4, 4), (128, 128, 128))
        assert upright_rgb(image).mode == "RGB"
        return
    image = red.convert(mode)
    assert upright_rgb(image).mode == "RGB"
    assert all(abs(a - b) <= 2 for a, b in zip(rgb_of(image), (255, 0, 0)))


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_images_stay_grey(mode):
    assert rgb_of(Image.new("L", (4, 4), 255).convert(mode)) == (255, 255, 255)
    assert rgb_of(Image.new("L", (4, 4), 0).convert(mode)) == (0, 0, 0)


def test_transparency_is_laid_on_white():
    assert rgb_of(Image.new("RGBA", (4, 4), (255, 0, 0, 0))) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_unknown_range_are_refused(tiny, mode):
    with pytest.raises(ValueError, match=f"row 0 .*mode '{mode}' \\(30x20\\).*convert it to RGB first"):
        VisionLanguageCollate(tiny("qwen2_vl"))([Sample(image=Image.new(mode, (30, 20)))])


def test_an_image_is_turned_upright(tmp_path):
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # the camera lay on its side
    image.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as photo:
        assert upright_rgb(photo).size == (20, 40)


def test_the_mode_of_an_image_is_seen_by_the_collate(tiny):
    collate = VisionLanguageCollate(tiny("qwen2_vl"))
    image = Image.new("RGB", (56, 56), "red")
    expected = collate([Sample(image=image)])["pixel_values"]
    assert torch.equal(collate([Sample(image=image.convert("RGBA"))])["pixel_values"], expected)
