"""What the encoders set of a tokenizer, and a reader must find in its files."""

from __future__ import annotations

from typing import Any

__all__ = ["UNLIMITED", "set_tokenizer"]

UNLIMITED = int(1e30)
"""How transformers writes that a tokenizer has no maximum length."""


def set_tokenizer(tokenizer: Any, **settings: Any) -> None:
    """Set what a tokenizer does and saves: it saves some attributes only if it was built with them."""
    for name, value in settings.items():
        setattr(tokenizer, name, value)
        tokenizer.init_kwargs[name] = value
