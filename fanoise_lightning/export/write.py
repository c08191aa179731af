"""From an encoder to a folder, and to what the folder has to give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from fanoise_lightning.encoders.hub import check_available
from fanoise_lightning.encoders.open_clip_encoder import OpenClipEncoder
from fanoise_lightning.encoders.two_tower import TwoTowerEncoder
from fanoise_lightning.encoders.vision_language import VisionLanguageEncoder
from fanoise_lightning.export.generative import write_vision_language
from fanoise_lightning.export.onnx import OPSET, check_onnx, write_onnx
from fanoise_lightning.export.open_clip import write_open_clip
from fanoise_lightning.export.rotation import check_rotation
from fanoise_lightning.export.sentence_transformers import add_rotation
from fanoise_lightning.export.two_towers import write_two_tower
from fanoise_lightning.export.verify import BAR, Check, embed_rows, rows_of
from fanoise_lightning.export.weights import merge_adapter, name_the_base, plain_copy
from fanoise_lightning.export.written import Written
from fanoise_lightning.training.embedding import on_cpu
from fanoise_lightning.training.lockstep import is_sharded

__all__ = ["check_exportable", "write"]

_ENCODERS = (VisionLanguageEncoder, TwoTowerEncoder, OpenClipEncoder)


def check_exportable(encoder: Any, merge: bool, rotation: Tensor | None = None, onnx: bool = False) -> None:
    """Refuse what cannot be exported, before anything is written.

    Raises:
        ImportError: if a package that ONNX needs is not installed.
        TypeError: if the encoder is of another class than those that can be exported.
        ValueError: if it is sharded, has weights in 4 bits, has no adapter to write alone, or cannot be
            rotated by `rotation`.
        OSError: if the model that it was built from is no longer there.
    """
    if type(encoder) not in _ENCODERS:
        raise TypeError(
            f"a {type(encoder).__name__} cannot be exported: no other library has a model of its kind, as "
            f"for {', '.join(kind.__name__ for kind in _ENCODERS)}. Embed with `fanoise embed`, or with "
            "`ContrastiveModule.encode`"
        )
    if is_sharded(encoder):
        raise ValueError("the encoder is sharded over ranks: export it from its checkpoint, in one process")
    if getattr(encoder, "load_in_4bit", False):
        raise ValueError(
            "weights in 4 bits cannot be exported: load the checkpoint with `encoder=` built with "
            "`load_in_4bit=False`, and export that"
        )
    if not merge and not _adapted(encoder):
        raise ValueError("the encoder has no adapter that could be written alone: leave out `merge=False`")
    if rotation is not None:
        check_rotation(rotation, encoder.embedding_dim)
        if isinstance(encoder, OpenClipEncoder):
            raise ValueError("open_clip has no place for a rotation: multiply its vectors by it yourself")
    if onnx:
        check_onnx(encoder, merge)
    if not isinstance(encoder, OpenClipEncoder):
        check_available(encoder.model)  # its processor and its language head are read again


def write(
    encoder: Any, folder: Path, merge: bool, rotation: Tensor | None = None, onnx: bool = False
) -> tuple[Check, dict[str, Any]]:
    """Write an encoder to an empty folder, without changing the encoder.

    Args:
        encoder: one that :func:`check_exportable` accepts.
        folder: an empty one.
        merge: merge its adapter, if there is one, into the weights.
        rotation: (D, D), that sentence-transformers is to multiply its vectors by.
        onnx: write its towers to ONNX files as well.

    Returns:
        What the folder has to give, and the facts for its receipt.

    Raises:
        ValueError: if vectors are not finite, merging changes those of an encoder in float32, or its weights
            have dtypes that do not fit together.
    """
    with on_cpu(encoder):
        copy, adapted = plain_copy(encoder), _adapted(encoder)
        network = copy.clip if isinstance(copy, OpenClipEncoder) else copy.network
        if adapted and merge:
            merge_adapter(network)
            copy.lora = copy.adapter = None
        written = _write(copy, folder, onnx)
        if rotation is not None:
            add_rotation(folder, rotation)
            written.rotation = rotation
        base = name_the_base(folder, network) if adapted and not merge else None
        dtypes = {str(weight.dtype).removeprefix("torch.") for weight in network.parameters()}
        dtype = " and ".join(sorted(dtypes))
        copy.float()  # libraries are compared in float32: in bfloat16 each of them rounds in its own way
        rows = rows_of(copy, written)
        vectors = embed_rows(copy, rows)
        if not vectors.isfinite().all():
            raise ValueError("the encoder gives vectors that are not finite: export an earlier checkpoint")
        try:
            rounding = (embed_rows(encoder, rows) - vectors).abs().max().item()
        except RuntimeError as error:
            if len(dtypes) == 1:
                raise
            raise ValueError(
                f"the encoder has weights in {dtype}, and cannot embed with them: convert it to one of these "
                "first, as with `encoder.float()`"
            ) from error
        if onnx:
            write_onnx(copy, folder)
            written.readers += ("onnxruntime",)
    if dtype == "float32" and not rounding <= BAR:
        raise ValueError(
            f"merging the adapter changes vectors by {rounding:.2g}, more than {BAR:g}: write the adapter "
            "alone, with `merge=False`"
        )
    facts = {
        "family": written.family,
        "base_model": _name(encoder.model),
        "dimension": encoder.embedding_dim,
        "normalized": True,
        "weights": "all" if not adapted else "merged" if merge else "adapter",
        **({} if base is None else {"base": base}),
        "dtype": dtype,
        "rounding": rounding,
        "rotated": rotation is not None,
        "steps": written.steps,
        "reading": written.reading,
        **({"onnx_opset": OPSET} if onnx else {}),
    }
    return Check(folder, written, rows, vectors), facts


def _write(encoder: Any, folder: Path, onnx: bool) -> Written:
    if isinstance(encoder, VisionLanguageEncoder):
        return write_vision_language(encoder, folder)
    if isinstance(encoder, TwoTowerEncoder):
        return write_two_tower(encoder, folder, onnx)
    return write_open_clip(encoder, folder)


def _name(model: str) -> str:
    """A hub id, or the last part of a path: where a folder lies is nobody else's business."""
    return Path(model).name if Path(model).exists() else model.removeprefix("hf-hub:")


def _adapted(encoder: Any) -> bool:
    return encoder.lora is not None or getattr(encoder, "adapter", None) is not None
