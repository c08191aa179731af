"""Texts of users are text: the name of a special token in them is read letter by letter."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from typing import Any

__all__ = ["PlainTexts", "short"]

# control tokens that some tokenizers, such as Phi-3.5's, do not mark as special
_CONTROL = ("<s>", "</s>")
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class PlainTexts:
    """A tokenizer that reads every text as text, and otherwise behaves as the original.

    Tokenizers look for their special tokens in each text: ``<|endoftext|>`` ends a caption for CLIP,
    ``<|image_pad|>`` stands for an image in Qwen2-VL. Here a text that holds such a name is read by
    :attr:`plain`, a copy of the tokenizer whose special tokens have secret names and their old ids; all
    other texts are read by the original tokenizer.

    Args:
        tokenizer: a tokenizer of transformers.
        also: further added tokens of the tokenizer that must not act in a text.

    Example:
        >>> texts = PlainTexts(clip_tokenizer)                                          # doctest: +SKIP
        >>> texts(["a cat <|endoftext|> or a dog"])                                     # doctest: +SKIP
    """

    def __init__(self, tokenizer: Any, also: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        special = {*tokenizer.all_special_tokens, *_CONTROL, *also}
        added = {
            token.content: token
            for token in tokenizer.added_tokens_decoder.values()
            if (token.special or token.content in special) and token.content.strip()
        }
        secret = secrets.token_hex(8)  # a user could type a fixed name
        self.names = {name: f"\U0010fffe{secret}{i}\U0010fffe" for i, name in enumerate(added)}
        longest_first = sorted(map(re.escape, added), key=len, reverse=True)
        # upper or lower case: a tokenizer may look for a token after it has lower-cased the text
        self._pattern = re.compile("|".join(longest_first) or "(?!)", re.IGNORECASE)

    def __call__(self, texts: list[str], **options: Any) -> Any:
        """What the tokenizer returns for these texts and options.

        Raises:
            ValueError: if a text cannot be read as text because the tokenizer is not a fast one.
        """
        found = {text: name for text in texts if (name := self.find(text)) is not None}
        if not found:
            return self.tokenizer(texts, **options)
        if self.tokenizer.is_fast:
            return self.plain(texts, **options)
        for text, name in found.items():
            self._check_split(text, name)
        return self.tokenizer(texts, split_special_tokens=True, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "tokenizer" not in self.__dict__:  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def find(self, text: str) -> str | None:
        """The first name of a special token in a text, as it is written there; ``None`` if there is none.

        A normaliser can turn other characters into such a name, as ``＜/s＞`` into ``</s>``; a Unigram model
        finds it then, even if the tokenizer looks for its special tokens before it normalises.
        """
        match = self._pattern.search(text)
        if match is None and self.tokenizer.is_fast:
            normaliser = self.tokenizer.backend_tokenizer.normalizer
            match = self._pattern.search(normaliser.normalize_str(text)) if normaliser is not None else None
        return None if match is None else match.group()

    def rename(self, text: str) -> str:
        """A text of our own, in which special tokens act, in the names that :attr:`plain` knows."""
        return self._pattern.sub(lambda match: self.names.get(match.group(), match.group()), text)

    @property
    def plain(self) -> Any:
        """The tokenizer whose special tokens have secret names; all ids are the same."""
        self._copy.padding_side = self.tokenizer.padding_side
        return self._copy

    @cached_property
    def _copy(self) -> Any:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        tokenizer = self.tokenizer
        backend = Tokenizer.from_str(_renamed(tokenizer.backend_tokenizer.to_str(), self.names))
        roles = {role: getattr(tokenizer, role, None) for role in _ROLES}
        plain = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            padding_side=tokenizer.padding_side,
            truncation_side=tokenizer.truncation_side,
            model_max_length=tokenizer.model_max_length,
            model_input_names=tokenizer.model_input_names,
            **{role: self.names.get(token, token) for role, token in roles.items() if token is not None},
        )
        for name, secret in self.names.items():
            if tokenizer.convert_tokens_to_ids(name) != plain.convert_tokens_to_ids(secret):
                raise ValueError(
                    f"the special token {name!r} of {tokenizer.name_or_path!r} cannot be renamed"
                )
        return plain

    def _check_split(self, text: str, name: str) -> None:
        """Refuse a text in which a tokenizer without a fast backend finds special tokens anyway."""
        tokenizer = self.tokenizer
        special = {tokenizer.convert_tokens_to_ids(name) for name in self.names} - {tokenizer.unk_token_id}
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if not special.isdisjoint(ids):
            raise ValueError(
                f"the text {short(text)} holds {name!r}, a special token that {type(tokenizer).__name__} "
                "cannot read as text: remove it, or pass `split_special_tokens=False` to let it act"
            )


def short(text: str) -> str:
    """A text in quotes, cut to fit into a message."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _renamed(tokenizer_json: str, names: dict[str, str]) -> str:
    """A tokenizer.json in which special tokens have other names and the same ids."""
    spec = json.loads(tokenizer_json)
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): id_ for token, id_ in model["vocab"].items()}
    else:  # Unigram: pieces with scores, by which it would still find "</s>" in a text
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [
            pair for pair in model["merges"] if names.keys().isdisjoint((*pair, "".join(pair)))
        ]
    return json.dumps(spec)
