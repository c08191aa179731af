"""``export_encoder``: a folder that other libraries read, once they were seen to read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from fanoise_lightning._log import report
from fanoise_lightning._version import __version__
from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.export.card import card
from fanoise_lightning.export.staging import whole_folder
from fanoise_lightning.export.verify import BAR, Check
from fanoise_lightning.export.verify import verify as read_back
from fanoise_lightning.export.write import check_exportable, write
from fanoise_lightning.module import ContrastiveModule

__all__ = ["RECEIPT", "export_encoder"]

RECEIPT = "verified.json"


def export_encoder(
    module: ContrastiveModule | Encoder,
    out: str | Path,
    *,
    merge: bool = True,
    onnx: bool = False,
    verify: bool = True,
) -> dict[str, Any]:
    """Write a folder that transformers, sentence-transformers or open_clip read, with the same vectors.

    Each of these libraries that is installed opens the folder in a process of its own, and is compared with
    the encoder on texts, pictures, both, prompts and mixed batches. If any number of a unit vector is off by
    more than 1e-5, nothing is exported. What was compared, and what a library reads differently, is in
    ``verified.json``.

    Args:
        module: a module, or its encoder. It stays as it is.
        out: the folder to write to, new or empty.
        merge: merge an adapter into the weights; otherwise, the adapter alone is written, which is read
            together with the model that it was trained on.
        onnx: write the towers of a two-tower encoder to ONNX files as well, in float32, for
            :class:`~fanoise_lightning.OnnxTowers`, onnxruntime and transformers.js.
        verify: have the libraries read the folder.

    Returns:
        What ``verified.json`` says.

    Raises:
        ImportError: if `onnx` needs a package that is not installed.
        TypeError: if the encoder is of another class than the three that can be exported.
        ValueError: if the encoder cannot be exported, `out` is not empty, or a library reads other vectors.
        RuntimeError: if the process of a library ends without a result, or takes too long.
        OSError: if the model that the encoder was built from is no longer there, or `out` cannot be written.

    Example:
        >>> receipt = export_encoder(module, "my-model")                          # doctest: +SKIP
        >>> receipt["readers"]["sentence-transformers"]["status"]                 # doctest: +SKIP
        'verified'
        >>> SentenceTransformer("my-model").encode(["a red mug"])                 # doctest: +SKIP
    """
    encoder = module.encoder if isinstance(module, ContrastiveModule) else module
    check_exportable(encoder, merge, onnx)
    out = Path(out).expanduser()
    with whole_folder(out) as folder:
        check, facts = write(encoder, folder, merge, onnx)
        readers = read_back([check])[0] if verify else _unread(check)
        for name, reader in readers.items():
            if reader["status"] == "failed":
                raise ValueError(
                    f"nothing was exported: {name} {reader['version']} does not read the folder as the "
                    f"encoder does: {reader['why']}"
                )
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        made_with = {"fanoise_lightning": __version__, **versions}
        receipt = {**facts, "bar": BAR, "made_with": made_with, "readers": readers}
        (folder / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
        base = facts["base_model"]
        text = card(receipt, {"base_model": base} if "/" in base else {})
        (folder / "README.md").write_text(text, encoding="utf-8")
    report(f"wrote {facts['family']} ({facts['weights']}, {facts['dtype']}) to `{out}`: {_summary(readers)}")
    return receipt


def _unread(check: Check) -> dict[str, Any]:
    why = "it was exported with `verify=False`"
    return {reader: {"status": "unverified", "why": why} for reader in check.written.readers}


def _summary(readers: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{name} {reader['version']} reads the same vectors (to {reader['largest_difference']:.1g})"
        if reader["status"] == "verified"
        else f"{name} is unverified ({reader['why']})"
        for name, reader in readers.items()
    )
