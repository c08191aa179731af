"""The HD transform and the processor of Phi-3.5-vision, against brute force; no model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoImageProcessor, AutoProcessor, PreTrainedTokenizerFast

from fanoise_lightning.encoders.phi3_vision import Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor
from fanoise_lightning.encoders.phi3_vision.hd_transform import (
    cut_crops,
    hd_grid,
    hd_layout,
    num_image_tokens,
)

WORDS = ["<unk>", "<s>", "<pad>", "a", "cat", "dog", "and", "find"]
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
BOS, PAD, A, CAT, DOG, AND = 1, 2, 3, 4, 5, 6


def tokenizer(bos: bool = True, **kwargs) -> PreTrainedTokenizerFast:
    """One id a word, `<s>` before every text that it is given."""
    tok = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", unk_token="<unk>", **kwargs)


def processor(num_crops: int = 1, **kwargs) -> Phi3VProcessor:
    return Phi3VProcessor(Phi3VImageProcessor(num_crops=num_crops), tokenizer(**kwargs))


def make_image(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def brute_force_grid(width: int, height: int, num_crops: int) -> tuple[int, int]:
    """Every scale is tried; the padded size is read off."""
    if width < height:
        return brute_force_grid(height, width, num_crops)[::-1]
    ratio = width / height
    scale = max(s for s in range(1, num_crops + 1) if s * math.ceil(s / ratio) <= num_crops)
    return -(-max(int(scale * 336 / ratio), 1) // 336), scale


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 16))
def test_grid_and_token_count_follow_the_closed_form(width, height, num_crops):
    rows, columns = hd_grid(width, height, num_crops)

    assert (rows, columns) == brute_force_grid(width, height, num_crops)
    assert 1 <= rows * columns <= num_crops
    assert len(hd_layout(rows, columns)) == (rows * columns + 1) * 144 + 1 + (rows + 1) * 12


@pytest.mark.parametrize(
    ("size", "num_crops", "tokens"),
    [((336, 336), 1, 313), ((336, 336), 4, 757), ((336, 336), 16, 2509), ((1920, 1080), 16, 2353)],
)
def test_published_token_counts(size, num_crops, tokens):
    assert Phi3VImageProcessor(num_crops=num_crops).num_image_tokens(*size) == tokens
    assert num_image_tokens(*hd_grid(*size, num_crops)) == tokens


@pytest.mark.parametrize("grid", [(1, 1), (1, 3), (3, 1), (2, 2), (3, 5), (2, 8)])
def test_layout_reads_the_image_line_by_line(grid):
    rows, columns = grid
    expected = []
    for y in range(rows * 12):
        for x in range(columns * 12):
            crop = 1 + (y // 12) * columns + x // 12
            expected.append(crop * 144 + (y % 12) * 12 + x % 12)
        expected.append(-1)
    expected.append(-2)
    for y in range(12):
        expected += [y * 12 + x for x in range(12)] + [-1]

    assert hd_layout(rows, columns).tolist() == expected


@pytest.mark.parametrize("size", [(37, 23), (500, 375), (180, 1000), (1000, 180), (340, 336), (1, 1)])
@pytest.mark.parametrize("num_crops", [1, 2, 5])
def test_crops_put_together_are_the_resized_image_on_white(size, num_crops):
    image = make_image(*size)
    out = Phi3VImageProcessor(num_crops=num_crops).preprocess(image)
    height, width = out["image_sizes"][0].tolist()
    rows, columns = brute_force_grid(*size, num_crops)
    assert (height, width) == (rows * 336, columns * 336)

    whole = np.zeros((3, height, width), dtype=np.float32)
    for k in range(rows * columns):
        y, x = k // columns * 336, k % columns * 336
        whole[:, y : y + 336, x : x + 336] = out["pixel_values"][0, 1 + k].numpy()
    pixels = (whole * STD[:, None, None] + MEAN[:, None, None]) * 255

    lying = image.transpose(Image.Transpose.TRANSPOSE) if size[0] < size[1] else image
    new_width = max(height, width) if size[0] < size[1] else width
    new_height = int(new_width / (lying.width / lying.height))
    resized = np.asarray(lying.resize((new_width, new_height), Image.Resampling.BILINEAR), dtype=np.float32)
    canvas = np.full((-(-new_height // 336) * 336, new_width, 3), 255, dtype=np.float32)
    top = (len(canvas) - new_height) // 2
    canvas[top : top + new_height] = resized
    expected = canvas.transpose(2, 1, 0) if size[0] < size[1] else canvas.transpose(2, 0, 1)
    np.testing.assert_allclose(pixels, expected, atol=1e-3)
    assert not out["pixel_values"][0, 1 + rows * columns :].any()


def test_global_view_is_bicubic_without_antialiasing():
    image = make_image(672, 336)
    view = cut_crops(image, MEAN.tolist(), STD.tolist())[0].numpy()
    pixels = (np.asarray(image, dtype=np.float64) / 255 - MEAN) / STD

    def weight(distance: float) -> float:  # Keys' kernel with a = -0.75
        t, a = abs(distance), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    for y, x in [(0, 0), (17, 200), (335, 335), (100, 1)]:
        centre = (x + 0.5) * 2 - 0.5
        taps = range(math.floor(centre) - 1, math.floor(centre) + 3)
        expected = sum(weight(centre - tap) * pixels[y, min(max(tap, 0), 671)] for tap in taps)
        np.testing.assert_allclose(view[:, y, x], expected, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (1, 20000)])
def test_degenerate_images_fill_whole_crops(size):
    out = Phi3VImageProcessor(num_crops=16).preprocess(make_image(*size))
    rows, columns = brute_force_grid(*size, 16)
    assert out["image_sizes"].tolist() == [[rows * 336, columns * 336]]
    assert torch.isfinite(out["pixel_values"]).all()


def test_each_piece_of_text_is_tokenized_with_its_special_tokens():
    ids = processor()(text="a <|image_1|> cat", images=[make_image(10, 10)])["input_ids"]
    assert ids.tolist() == [[BOS, A, *[-1] * 313, BOS, CAT]]


def test_images_in_a_row_have_an_empty_piece_between_them():
    ids = processor()(text="<|image_1|><|image_2|> dog", images=[make_image(9, 9), make_image(9, 8)])[
        "input_ids"
    ]
    assert ids.tolist() == [[BOS, *[-1] * 313, BOS, *[-2] * 313, BOS, DOG]]


def test_placeholders_in_reverse_order_keep_their_numbers_and_sizes():
    wide, square = make_image(700, 100), make_image(50, 50)
    out = processor(num_crops=2)(text="<|image_2|> <|image_1|>", images=[wide, square])
    counts = [num_image_tokens(*brute_force_grid(*p.size, 2)) for p in (wide, square)]
    assert counts[0] != counts[1]
    assert out["input_ids"].tolist() == [[BOS, *[-2] * counts[1], BOS, *[-1] * counts[0], BOS]]
    assert out["image_sizes"].tolist() == [[336, 672], [336, 336]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_without_images_are_padded_on_the_asked_side(side):
    out = processor()(
        text=["<|image_1|> a", "a cat and a dog"], images=[make_image(5, 5), None], padding_side=side
    )
    words, padding = [BOS, A, CAT, AND, A, DOG], [PAD] * (316 - 6)
    assert out["input_ids"][1].tolist() == (padding + words if side == "left" else words + padding)
    assert out["attention_mask"].sum(1).tolist() == [316, 6]
    assert out["pixel_values"].shape == (1, 2, 3, 336, 336)


def test_text_alone_has_no_pixels():
    out = processor()(text=["a cat", ""])
    assert sorted(out) == ["attention_mask", "input_ids"]
    assert out["input_ids"].tolist() == [[BOS, A, CAT], [BOS, PAD, PAD]]


def test_padding_to_a_fixed_length():
    out = processor()(text=["a", "a cat"], padding="max_length", max_length=5)
    assert out["input_ids"].tolist() == [[BOS, A, PAD, PAD, PAD], [BOS, A, CAT, PAD, PAD]]


def test_flat_and_nested_images_are_the_same():
    texts = ["<|image_1|> a", "cat", "<|image_1|> <|image_2|>"]
    p = [make_image(20, 20, seed) for seed in range(3)]
    flat = processor()(text=texts, images=p)
    for nested in ([[p[0]], [], [p[1], p[2]]], [p[0], None, (p[1], p[2])]):
        out = processor()(text=texts, images=nested)
        assert all(torch.equal(out[key], flat[key]) for key in flat)
    assert torch.equal(
        flat["pixel_values"][1:2], processor()(text="<|image_1|>", images=p[1])["pixel_values"]
    )


def test_truncation_cuts_texts_but_never_images():
    out = processor()(
        text=["a cat and a dog", "<|image_1|> a"],
        images=[None, make_image(5, 5)],
        truncation=True,
        max_length=3,
    )
    assert out["attention_mask"].sum(1).tolist() == [3, 316]


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        ("a <|image_1|>", None, r"row 0 has 0 images and <\|image_1\|>"),
        ("a", [make_image(2, 2)], r"1 images for 0 <\|image_i\|> placeholders"),
        (["a", "cat"], [None, make_image(2, 2)], "row 1 has 1 images and no placeholder"),
        (
            "<|image_1|><|image_1|>",
            [make_image(2, 2)] * 2,
            r"row 0 has <\|image_1\|>, <\|image_1\|>.*only once",
        ),
        ("<|image_2|>", [make_image(2, 2)], "expected the numbers 1 to 1"),
        ("<|image_0|>", [make_image(2, 2)], "expected the numbers 1 to 1"),
        (["a", "cat"], [None], "1 entries for 2 texts"),
    ],
)
def test_placeholders_and_images_have_to_fit(texts, images, message):
    with pytest.raises(ValueError, match=message):
        processor()(text=texts, images=images)


def test_a_row_of_nothing_is_refused():
    with pytest.raises(ValueError, match="row 1 is empty"):
        processor(bos=False)(text=["a", ""])


def test_other_things_than_texts_and_images_are_refused():
    with pytest.raises(TypeError, match=r"text 0 is a Image.*text=\.\.\., images="):
        processor()([make_image(2, 2)], "a")
    with pytest.raises(TypeError, match="text 0 is a NoneType"):
        processor()(None, make_image(2, 2))
    with pytest.raises(ValueError, match="there is no text"):
        processor()([])
    with pytest.raises(ValueError, match=r"no setting \['do_resize'\]"):
        processor()(text="<|image_1|>", images=make_image(2, 2), do_resize=False)
    with pytest.raises(TypeError, match="image 0 is a ndarray"):
        processor()(text="<|image_1|>", images=[[np.zeros((2, 2, 3))]])


@pytest.mark.parametrize("num_crops", [0, -1, 2.0, True, "4"])
def test_num_crops_is_a_positive_integer(num_crops):
    with pytest.raises(ValueError, match="num_crops is"):
        Phi3VImageProcessor(num_crops=num_crops)
    with pytest.raises(ValueError, match="num_crops is"):
        Phi3VImageProcessor().preprocess(make_image(2, 2), num_crops=num_crops)


def test_num_crops_can_be_given_with_the_call():
    out = processor(num_crops=1)(text="<|image_1|>", images=make_image(336, 336), num_crops=4)
    assert out["pixel_values"].shape[1] == 5
    assert (out["input_ids"] == -1).sum() == 757


def test_a_saved_processor_is_read_back(tmp_path):
    before = processor(num_crops=3, padding_side="left")
    before.save_pretrained(tmp_path)
    after = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(after, Phi3VProcessor)
    batch = {"text": ["<|image_1|> a", "cat"], "images": [make_image(30, 90), None]}
    assert all(torch.equal(value, after(**batch)[key]) for key, value in before(**batch).items())
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), Phi3VImageProcessor)


def test_the_published_folder_is_read_without_remote_code(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    Phi3VConfig().save_pretrained(tmp_path)
    names = {"AutoProcessor": "processing_phi3_v.Phi3VProcessor"}
    names["AutoImageProcessor"] = "processing_phi3_v.Phi3VImageProcessor"
    published = {
        "auto_map": names,
        "num_crops": 4,
        "num_img_tokens": 144,
        "image_mean": MEAN.tolist(),
        "image_std": STD.tolist(),
        "image_processor_type": "Phi3VImageProcessor",
        "processor_class": "Phi3VProcessor",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))

    assert AutoProcessor.from_pretrained(tmp_path).image_processor.num_crops == 4
    assert AutoProcessor.from_pretrained(tmp_path, num_crops=16).image_processor.num_crops == 16
