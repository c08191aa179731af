"""The README.md of an exported folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from fanoise_lightning.export.usage import usage

__all__ = ["card"]


def card(receipt: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The model card: front matter, and for each library how it reads the folder and what it cannot read.

    Args:
        receipt: what ``verified.json`` says.
        facts: ``base_model``, and anything else that the front matter should hold.

    Returns:
        Markdown.
    """
    libraries = ("open_clip", "sentence-transformers", "onnxruntime")
    library = next(name for name in libraries if name in receipt["readers"])
    front = {
        "library_name": library,
        "pipeline_tag": "feature-extraction" if library != "open_clip" else "zero-shot-image-classification",
        "license": "unknown",
        "tags": ["feature-extraction", "multimodal", "fanoise"],
        **facts,
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {receipt['family']} embeddings",
        f"{receipt['dimension']} dimensions, unit length, trained with fanoise-lightning. In the code below, "
        "`FOLDER` is this folder and `image` is a Pillow image.",
    ]
    if receipt["steps"]:
        parts.append("Before a row is embedded:\n\n" + _list(receipt["steps"]))
    for name, reader in receipt["readers"].items():
        parts.append(f"## {name}\n\n{_status(reader)}")
        if reader["status"] == "verified":
            parts.append(f"```python\n{usage(name, receipt['reading'])}```")
        if limits := reader.get("cannot"):
            parts.append("What it reads differently:\n\n" + _list(f"{k}: {why}" for k, why in limits.items()))
    return "\n\n".join(parts) + "\n"


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _status(reader: Mapping[str, Any]) -> str:
    if reader["status"] != "verified":
        return f"Not verified: {reader['why']}."
    return (
        f"Read back with version {reader['version']}: the largest difference of any number of "
        f"{len(reader['rows'])} kinds of rows is {reader['largest_difference']:.1g}."
    )
