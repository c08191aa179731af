"""What the tests of model cards share: a receipt, and an independent reading of Markdown."""

from __future__ import annotations

from typing import Any

from markdown_it import MarkdownIt

RECEIPT: dict[str, Any] = {
    "family": "Qwen2-VL",
    "base_model": "Qwen/Qwen2-VL-2B-Instruct",
    "dimension": 32,
    "normalized": True,
    "weights": "merged",
    "dtype": "bfloat16",
    "rounding": 0.0,
    "steps": ["resize every picture to 56 x 56 pixels (bicubic)"],
    "reading": {
        "pooling": "last",
        "max_text_length": 60,
        "image_size": 56,
        "plain_positions": False,
        "imports": [],
    },
    "prompts": {"NIGHTS": "Find a day-to-day image that looks similar to the provided image."},
    "bar": 1e-5,
    "made_with": {"fanoise_lightning": "0.2.0", "transformers": "5.24.0", "torch": "2.15.0"},
    "readers": {
        "transformers": {
            "status": "verified",
            "version": "5.24.0",
            "largest_difference": 1e-7,
            "rows": {"text": 0.0, "picture": 1e-7, "text and picture": 0.0},
            "cannot": {"turned picture": "its EXIF orientation is ignored: turn it first: differs by 0.1"},
        },
        "sentence-transformers": {"status": "unverified", "why": "sentence-transformers is not installed"},
    },
}


def sections(card: str) -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = card.split("\n## ")[1:]
    return {title: text.strip() for title, _, text in (part.partition("\n") for part in parts)}


def tags(card: str) -> set[str]:
    """The kinds of what a CommonMark reader, with tables and raw HTML, finds in a text."""
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    found = set()
    for token in reader.parse(card):
        found |= {token.type, *(child.type for child in token.children or [])}
    return found


def plain(markdown: str) -> str:
    """What a reader sees of a text."""
    tokens = MarkdownIt("commonmark", {"html": True}).parseInline(markdown)
    return "".join(child.content for token in tokens for child in token.children or [])
