"""Texts of users that hold the names of special tokens, against tokenizers that know no such names."""

from __future__ import annotations

import pickle
import unicodedata

import open_clip
import pytest
import tiny_two_towers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import BUILDERS, make_image, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from fanoise_lightning import Sample
from fanoise_lightning.encoders.families import Family
from fanoise_lightning.encoders.open_clip_encoder import _read_as_text
from fanoise_lightning.encoders.plain_text import PlainTexts
from fanoise_lightning.encoders.two_tower import TwoTowerEncoder
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder
from fanoise_lightning.encoders.vision_language_collate import VisionLanguageCollate

families = pytest.mark.parametrize("family", sorted(BUILDERS))
towers = pytest.mark.parametrize("family", tiny_two_towers.BUILDERS)
CAT = make_image(60, 40, 0)
SPECIAL = (
    "a <|im_end|> b </s><s> <image> <|image_pad|> <|video_pad|> <pad> <|endoftext|> <|vision_start|> [SEP]"
)


def unigram() -> transformers.PreTrainedTokenizerFast:
    """As T5's, which SigLIP and XLM-R have: its model itself finds </s> in a text."""
    specials = ["<pad>", "</s>", "<unk>"]
    pieces = [(token, 0.0) for token in specials] + [(chr(i), -9.0) for i in (0x2581, *range(33, 127))]
    raw = Tokenizer(models.Unigram([*pieces, ("▁the", -2.0), ("ing", -2.0)], unk_id=2))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def normalising_unigram() -> transformers.PreTrainedTokenizerFast:
    """As XLM-R's and SigLIP's: its model finds the </s> that the normaliser makes of wide letters."""
    raw = unigram().backend_tokenizer
    raw.normalizer = normalizers.NFKC()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def byte_level() -> transformers.PreTrainedTokenizerFast:
    """As Qwen's and Llama 3's: over bytes, special tokens behind the vocabulary, whole words as they are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {
        token: i for i, token in enumerate([*alphabet, "th", "the", "<s", "<s>", "Ġ<", "</", "</s", "</s>"])
    }
    merges = [("t", "h"), ("th", "e"), ("<", "s"), ("<s", ">"), ("<", "/"), ("</", "s"), ("</s", ">")]
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.add_special_tokens([AddedToken(token, normalized=False) for token in ("<|im_end|>", "</s>")])
    raw.add_tokens([AddedToken("<tool_call>", normalized=False)])
    raw.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", raw.token_to_id("<|im_end|>"))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="</s>", eos_token="<|im_end|>", padding_side="left"
    )


def normalising() -> transformers.PreTrainedTokenizerFast:
    """It looks for its special tokens after it has made capitals small and wide letters narrow."""
    tokenizer = tiny_tokenizer()
    raw = tokenizer.backend_tokenizer
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    raw.add_special_tokens([AddedToken("<end>", normalized=True)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>")


WIDE = {letter: letter + 0xFEE0 for letter in range(33, 127)}  # NFKC makes them narrow
TOKENIZERS = {
    "clip": lambda: tiny_two_towers.clip_tokenizer(77),
    "bert": tiny_two_towers.bert_tokenizer,
    "siglip2": lambda: tiny_two_towers.siglip2()[1].tokenizer,
    "unigram": unigram,
    "normalising unigram": normalising_unigram,
    "byte-level": byte_level,
    "normalising": normalising,
    "characters": lambda: tiny_tokenizer(["<|im_end|>", "<image>"], bos="<s>"),
}
TEXTS = st.lists(
    st.text(max_size=40) | st.sampled_from(["the cat", "<", "|>", "<s", "[sep", "  ", "é€😀", "\n"])
)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_without_special_tokens_has_the_numbers_that_it_had(name):
    tokenizer = TOKENIZERS[name]()
    texts = PlainTexts(tokenizer)

    @settings(max_examples=150, deadline=None, database=None)
    @given(TEXTS.map("".join))
    def check(text):
        if texts.find(text) is None:
            expected = tokenizer([text, "the"], padding=True)
            assert texts([text, "the"], padding=True) == expected
            assert (
                texts.plain([text, "the"], padding=True) == expected
            )  # what it has beside a text that names one
            cut = {"truncation": True, "max_length": 6}
            assert texts.plain([text], **cut) == tokenizer([text], **cut)

    check()


@pytest.mark.parametrize("text", ["a ＜/s＞ b", "a <／s> b", "﹤/s﹥"])
def test_what_a_normaliser_makes_of_a_text_is_text(text):
    texts = PlainTexts(normalising_unigram())
    pieces = texts.convert_ids_to_tokens(texts([text], add_special_tokens=False)["input_ids"][0])
    assert pieces == list("▁" + unicodedata.normalize("NFKC", text).replace(" ", "▁"))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_text_calls_a_special_token(name):
    tokenizer = TOKENIZERS[name]()
    texts = PlainTexts(tokenizer)
    numbers = set(tokenizer.convert_tokens_to_ids(list(texts.names)))
    if name != "clip":  # the others have no letters beyond their few
        numbers -= {tokenizer.unk_token_id}
    template = tokenizer("", add_special_tokens=True)["input_ids"]
    names = [f"a{name}b the {name} {name}" for name in texts.names] + [SPECIAL, SPECIAL.upper(), "<End>"]
    for text in names + [name.translate(WIDE) for name in names]:
        assert numbers.isdisjoint(texts([text], add_special_tokens=False)["input_ids"][0])
        ids = texts([text])["input_ids"][0]
        assert [number for number in ids if number in numbers] == template


def test_clip_reads_its_end_token_as_open_clips_tokenizer_which_has_another():
    texts = PlainTexts(tiny_two_towers.clip_tokenizer(77))
    for text in ["a cat <|endoftext|> or a dog", "<|startoftext|> !", "A <|EndOfText|>", "x<|endoftext|>y"]:
        expected = open_clip.SimpleTokenizer().encode(text)
        assert texts([text])["input_ids"][0][1:-1] == expected


def test_open_clip_reads_its_end_token_as_clips_tokenizer_which_has_another():
    ours, stock = open_clip.SimpleTokenizer(), open_clip.SimpleTokenizer()
    _read_as_text(ours)
    for text in ["a <end_of_text> b", "<start_of_text>", "&lt;end_of_text&gt;", "A<END_OF_TEXT>!"]:
        expected = tiny_two_towers.clip_tokenizer(77)(open_clip.tokenizer._clean_lower(text))["input_ids"]
        (ids,) = ours([text])
        assert ids[: len(expected)].tolist() == expected
        assert stock.eot_token_id in stock.encode(text) or stock.sot_token_id in stock.encode(text)


@settings(max_examples=150, deadline=None, database=None)
@given(st.text(max_size=60))
def test_open_clip_gives_a_text_without_special_tokens_the_numbers_that_it_had(text):
    assert OURS.encode(text) == STOCK.encode(text)


OURS, STOCK = open_clip.SimpleTokenizer(), open_clip.SimpleTokenizer()
_read_as_text(OURS)


def test_open_clips_wrapper_of_a_tokenizer_reads_texts_as_text(tmp_path):
    unigram().save_pretrained(tmp_path)
    stock, ours = (open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=20) for _ in range(2))
    _read_as_text(ours)
    assert torch.equal(ours(["the cat"]), stock(["the cat"]))
    assert (stock(["&lt;/s&gt; cat"]) == 1).sum() == 2  # it cleans up, and reads an end
    assert (ours(["&lt;/s&gt; cat"]) == 1).sum() == 1
    assert (ours(["a </s> cat"]) == 1).nonzero().tolist() == [[0, 11]]  # behind ▁ a ▁ < / s > ▁ c a t
    assert ours.tokenizer.sep_token_id is None  # what else open_clip asks for


def characters(collate, text: str) -> list[int]:
    """The tiny tokenizers have one token a character."""
    return [collate.processor.tokenizer.convert_tokens_to_ids(character) for character in text]


def ids_of(batch) -> list[list[int]]:
    rows = zip(batch["input_ids"], batch["attention_mask"])
    return [ids[mask.bool()].tolist() for ids, mask in rows]


@families
def test_a_vision_language_model_reads_special_tokens_as_text(tiny, family):
    collate = VisionLanguageCollate(tiny(family))
    start = [collate.processor.tokenizer.bos_token_id] if family in ("llava_next", "phi3_v") else []
    found = ids_of(collate([Sample(SPECIAL), Sample("a cat"), Sample(SPECIAL, CAT), Sample(image=CAT)]))
    assert found[0] == [*start, *characters(collate, SPECIAL)]
    assert found[1] == ids_of(collate([Sample("a cat")]))[0]
    assert found[3] == ids_of(collate([Sample(image=CAT)]))[0]
    plain, space = found[3], characters(collate, " ")
    assert found[2] == [*plain, *space, *characters(collate, SPECIAL)]


@families
def test_places_keep_working_beside_special_tokens(tiny, family):
    collate = VisionLanguageCollate(tiny(family))
    (stock,) = ids_of(collate([Sample("see <|image_1|>~~", CAT)]))
    (found,) = ids_of(collate([Sample("see <|image_1|><|image_pad|><image>", CAT)]))
    assert found[: len(stock) - 2] == stock[:-2]
    assert found[len(stock) - 2 :] == characters(collate, "<|image_pad|><image>")


@families
def test_rows_with_special_tokens_are_embedded_as_they_are_alone(tiny, family):
    encoder = VisionLanguageEncoder(tiny(family), pooling="eos")
    samples = [Sample(SPECIAL), Sample("a cat"), Sample(SPECIAL, CAT), Sample("<image> a", (CAT, CAT))]
    with torch.no_grad():
        alone = torch.cat([encoder(**encoder.collate([sample])) for sample in samples])
        together = encoder(**encoder.collate(samples))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_text_that_names_special_tokens_is_cut_by_its_own_tokens(tiny):
    collate = VisionLanguageCollate(tiny("qwen2_vl"), max_length=12, append_eos=True)
    (ids,) = ids_of(collate([Sample("<|im_end|> and so on")]))
    assert ids == [*characters(collate, "<|im_end|> "), collate.processor.tokenizer.eos_token_id]


def test_the_padding_side_may_be_changed_at_any_time(tiny):
    collate = VisionLanguageCollate(tiny("qwen2_vl"))
    samples = [Sample("<|im_end|>"), Sample("a")]
    for side, column in [("left", 0), ("right", -1)]:
        collate.processor.tokenizer.padding_side = side
        assert collate(samples)["attention_mask"][1, column] == 0


def test_a_collate_that_read_special_tokens_still_travels(tiny):
    collate = VisionLanguageCollate(tiny("qwen2_vl"))
    batch = collate([Sample(SPECIAL, CAT)])
    again = pickle.loads(pickle.dumps(collate))([Sample(SPECIAL, CAT)])
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_special_tokens_act_where_they_are_asked_to(tiny):
    encoder = VisionLanguageEncoder(tiny("qwen2_vl"), split_special_tokens=False)
    processor = transformers.AutoProcessor.from_pretrained(tiny("qwen2_vl"))
    text = "<|im_start|>a cat<|im_end|>"
    assert ids_of(encoder.collate([Sample(text)])) == processor(text=[text])["input_ids"]
    with pytest.raises(ValueError, match=r"row 1 .*holds '<\|image_pad\|>'.*write <\|image_1\|>, or"):
        encoder.collate([Sample("fine"), Sample("an <|image_pad|>", CAT)])


def test_a_processor_of_unknown_code_refuses_special_tokens_by_name(tiny):
    collate = VisionLanguageCollate(tiny("llava_next"))
    collate.family = Family("odd_vl", placeholder="")
    with pytest.raises(
        ValueError, match=r"row 1 of the batch: .*'a <image>' holds '<image>'.* odd_vl cannot"
    ):
        collate([Sample("fine"), Sample("a <image>", CAT)])


@towers
def test_two_towers_read_special_tokens_as_text(tiny, family):
    encoder = TwoTowerEncoder(tiny(family))
    acting = TwoTowerEncoder(tiny(family), split_special_tokens=False)
    tokenizer = encoder.collate.tokenizer
    end = tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"][-1])
    sample, other = Sample(f"a{end}b"), Sample("a red apple")
    number = tokenizer.convert_tokens_to_ids(end)
    pads = 16 if tokenizer.pad_token == end else 0
    counts = [(e.collate([sample])["input_ids"] == number).sum().item() for e in (encoder, acting)]
    assert counts[0] + 1 == counts[1] or (pads and counts[0] < counts[1])
    assert torch.equal(
        encoder.collate([other, sample])["input_ids"][0, :5], acting.collate([other])["input_ids"][0, :5]
    )
    with torch.no_grad():
        vectors = [e(**e.collate([sample])) for e in (encoder, acting)]
        assert (vectors[0] - vectors[1]).abs().max() > 1e-3
        torch.testing.assert_close(
            encoder(**encoder.collate([other, sample]))[1:], vectors[0], atol=1e-5, rtol=0
        )


def test_a_tokenizer_without_a_fast_backend_reads_text_or_refuses_it():
    tokenizer = transformers.ByT5Tokenizer()
    assert not tokenizer.is_fast
    texts = PlainTexts(tokenizer)
    assert texts(["the cat"])["input_ids"] == tokenizer(["the cat"])["input_ids"]
    (ids,) = texts(["the </s> cat"])["input_ids"]
    assert ids == [3 + byte for byte in b"the </s> cat"] + [tokenizer.eos_token_id]
    assert tokenizer(["the </s> cat"])["input_ids"] != [ids]
    texts.tokenizer = _Deaf(tokenizer)
    with pytest.raises(ValueError, match=r"'the </s> cat' holds '</s>', a special token that _Deaf cannot"):
        texts(["the </s> cat"])


class _Deaf:
    """A tokenizer that does not know `split_special_tokens`."""

    def __init__(self, tokenizer) -> None:
        self.__dict__.update(tokenizer=tokenizer)

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def __call__(self, text, split_special_tokens=False, **options):
        return self.tokenizer(text, **options)
