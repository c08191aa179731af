"""``export_encoder``: a folder that other libraries read, once they were seen to read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from fanoise_lightning._log import report
from fanoise_lightning._version import __version__
from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.export.card import card
from fanoise_lightning.export.card_base import base_of, data_of
from fanoise_lightning.export.card_facts import Facts, checkpoint_facts, module_facts, with_scores
from fanoise_lightning.export.mmeb_prompts import mmeb_prompts
from fanoise_lightning.export.sentence_transformers import add_prompts
from fanoise_lightning.export.staging import whole_folder
from fanoise_lightning.export.verify import BAR, Check
from fanoise_lightning.export.verify import verify as read_back
from fanoise_lightning.export.write import check_exportable, write
from fanoise_lightning.module import ContrastiveModule

__all__ = ["RECEIPT", "export_encoder"]

RECEIPT = "verified.json"

_ST = "sentence-transformers"


def export_encoder(
    module: ContrastiveModule | Encoder,
    out: str | Path,
    *,
    merge: bool = True,
    rotation: Tensor | None = None,
    onnx: bool = False,
    verify: bool = True,
    checkpoint: str | Path | None = None,
    scoreboard: str | Path | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Write a folder that transformers, sentence-transformers or open_clip read, with the same vectors.

    Each of these libraries that is installed opens the folder in a process of its own, and is compared with
    the encoder on texts, pictures, both, prompts and mixed batches. If any number of a unit vector is off by
    more than 1e-5, nothing is exported. What was compared, and what a library reads differently, is in
    ``verified.json``. ``README.md`` is the model card, with a block of Python for each of them.

    Args:
        module: a module, or its encoder. It stays as it is.
        out: the folder to write to, new or empty.
        merge: merge an adapter into the weights; otherwise, the adapter alone is written, which is read
            together with the model that it was trained on.
        rotation: (D, D), of :func:`~fanoise_lightning.spectral_rotation`: sentence-transformers multiplies
            its vectors by it, so that ``truncate_dim`` keeps their strongest directions.
        onnx: write the towers of a two-tower encoder to ONNX files as well, in float32, for
            :class:`~fanoise_lightning.OnnxTowers`, onnxruntime and transformers.js.
        verify: have the libraries read the folder.
        checkpoint: the file that the module was loaded from. What the card says of the training is read there
            and from ``config.yaml`` and ``scores.json`` beside it; by default, from the module.
        scoreboard: ``scores.json`` or ``test_scores.json``, if its scores are to be in the card instead.
        name: what the card calls the model, such as its repository on the hub; by default as the folder.

    Returns:
        What ``verified.json`` says.

    Raises:
        ImportError: if `onnx` needs a package that is not installed.
        TypeError: if the encoder is of another class than the three that can be exported.
        ValueError: if the encoder cannot be exported, `out` is not empty, a library reads other vectors, or
            the scores are those of another training step.
        RuntimeError: if the process of a library ends without a result, or takes too long.
        OSError: if the model that the encoder was built from is no longer there, or `out` cannot be written.

    Example:
        >>> receipt = export_encoder(module, "my-model")                          # doctest: +SKIP
        >>> receipt["readers"]["sentence-transformers"]["status"]                 # doctest: +SKIP
        'verified'
        >>> SentenceTransformer("my-model").encode(["a red mug"])                 # doctest: +SKIP
    """
    encoder = module.encoder if isinstance(module, ContrastiveModule) else module
    check_exportable(encoder, merge, rotation, onnx)
    out = Path(out).expanduser()
    trained = _facts(module, checkpoint, scoreboard)
    with whole_folder(out) as folder:
        check, facts = write(encoder, folder, merge, rotation, onnx)
        if _ST in check.written.readers:
            prompts = mmeb_prompts(trained.data, "picture with a prompt" not in check.written.cannot[_ST])
            add_prompts(folder, prompts)
            facts["prompts"] = prompts
        readers = read_back([check])[0] if verify else _unread(check)
        for library, reader in readers.items():
            if reader["status"] == "failed":
                raise ValueError(
                    f"nothing was exported: {library} {reader['version']} does not read the folder as the "
                    f"encoder does: {reader['why']}"
                )
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        made_with = {"fanoise_lightning": __version__, **versions}
        base, data = base_of(encoder), data_of(trained.data["source"]) if trained.data else None
        receipt = {**facts, "bar": BAR, "made_with": made_with, "readers": readers}
        (folder / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
        text = card(receipt, name or out.absolute().name, trained, base, data)
        (folder / "README.md").write_text(text, encoding="utf-8")
    report(f"wrote {facts['family']} ({facts['weights']}, {facts['dtype']}) to `{out}`: {_summary(readers)}")
    return receipt


def _facts(
    module: ContrastiveModule | Encoder, checkpoint: str | Path | None, scoreboard: str | Path | None
) -> Facts:
    """What the card says of the training."""
    if checkpoint is not None:
        facts = checkpoint_facts(Path(checkpoint).expanduser())
    else:
        facts = module_facts(module) if isinstance(module, ContrastiveModule) else Facts()
    return facts if scoreboard is None else with_scores(facts, Path(scoreboard).expanduser())


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
