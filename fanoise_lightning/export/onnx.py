"""The towers of a two-tower encoder as ONNX files, under the names that transformers.js looks for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL.Image import new
from torch import Tensor, nn

from fanoise_lightning.encoders.onnx_towers import IMAGE_FILE, SPLITS_SPECIAL_TOKENS, TEXT_FILE
from fanoise_lightning.encoders.open_clip_encoder import OpenClipEncoder
from fanoise_lightning.encoders.towers import TwoTowers
from fanoise_lightning.encoders.two_tower import TwoTowerEncoder

__all__ = ["OPSET", "check_onnx", "write_onnx"]

OPSET = 18
"""The version of ONNX's operators in which torch writes them; onnxruntime 1.14 and newer read it."""

_MOST_BYTES = 2**31 - 1  # in one file of Protobuf
_TEXTS = ["a", "a text of several words"]
_SIZES = [(48, 32), (32, 48)]


def check_onnx(encoder: Any, merge: bool) -> None:
    """Refuse what cannot be exported to ONNX, before anything is written.

    Raises:
        ImportError: if onnx or onnxscript is not installed.
        TypeError: if the encoder does not have two towers.
        ValueError: if its adapter is to be written alone.
    """
    if not isinstance(encoder, TwoTowers):
        raise TypeError(
            f"a {type(encoder).__name__} cannot be exported to ONNX: which of its operations run depends on "
            "the sizes of the images in a batch, and an ONNX graph is fixed. Leave out `onnx=True`; a "
            "TwoTowerEncoder or an OpenClipEncoder can be exported"
        )
    if not merge:
        raise ValueError("an ONNX file holds the merged weights: leave out `merge=False` or `onnx=True`")
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ImportError(
            f"`onnx=True` needs {' and '.join(missing)}: `pip install 'fanoise-lightning[onnx]'`"
        )


def write_onnx(encoder: TwoTowers, folder: Path) -> None:
    """Write both towers below ``onnx`` in a folder, in float32, for batches of any size.

    Their inputs are those of :meth:`TwoTowers.encode_text` and :meth:`TwoTowers.encode_image`, their output
    is what these return: (U, D) and (P, D), not normalised. Weights of more than 2 GB are written beside a
    file, to ``.onnx_data``.

    Args:
        encoder: in float32, on the CPU, without an adapter. It may be changed.
        folder: holds what the encoder was exported to.

    Raises:
        ValueError: if torch cannot export a tower.
    """
    if isinstance(encoder, OpenClipEncoder):
        encoder.clip.set_grad_checkpointing(False)  # it recomputes in eval mode, too
    collate: Any = encoder.collate
    pooled = getattr(collate, "siglip", False)  # transformers' towers of SigLIP have no projections
    text, image = ("pooler_output",) * 2 if pooled else ("text_embeds", "image_embeds")
    if isinstance(encoder, TwoTowerEncoder):  # transformers.js looks for a file that transformers has merged
        collate.image_processor.save_pretrained(folder)
    (folder / TEXT_FILE).parent.mkdir()
    any_length = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.AUTO}  # AUTO: some towers have one length
    _export(encoder, "text", collate.tokenize(_TEXTS), any_length, text, folder / TEXT_FILE)
    images = collate.to_floats(collate.transform([collate.prepare(new("RGB", size)) for size in _SIZES]))
    _export(encoder, "image", images, {0: torch.export.Dim.DYNAMIC}, image, folder / IMAGE_FILE)


class _Tower(nn.Module):
    """One tower of an encoder, as the exporter takes it."""

    def __init__(self, encoder: TwoTowers, name: str) -> None:
        super().__init__()
        self.encoder, self.name = encoder, name

    def forward(self, **inputs: Tensor) -> Tensor:
        return (
            self.encoder.encode_text(**inputs) if self.name == "text" else self.encoder.encode_image(**inputs)
        )


def _export(
    encoder: TwoTowers, name: str, inputs: dict[str, Tensor], sizes: dict[int, Any], output: str, file: Path
) -> None:
    import onnx_ir

    try:
        with torch.no_grad():
            program = torch.onnx.export(
                _Tower(encoder, name).eval(),
                kwargs=inputs,
                dynamic_shapes={"inputs": dict.fromkeys(inputs, sizes)},
                output_names=[output],
                opset_version=OPSET,
                custom_translation_table={torch.ops.aten._is_all_true.default: _all_true},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"torch {torch.__version__} cannot export the {name} tower to ONNX, leave out `onnx=True`: "
            f"{str(cause).strip().splitlines()[0]}"
        ) from error
    assert program is not None  # only of the older exporter
    model = program.model
    if name == "text":
        plain = getattr(encoder, "split_special_tokens", True)
        model.metadata_props[SPLITS_SPECIAL_TOKENS] = str(plain).lower()
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    onnx_ir.save(model, file, external_data=f"{file.name}_data" if size > _MOST_BYTES else None)


def _all_true(flags: Any) -> Any:
    """`aten._is_all_true`, which SigLIP 2 checks the sizes of its images with, and torch cannot translate."""
    from onnx import TensorProto
    from onnxscript import opset18 as op

    return op.Cast(op.ReduceMin(op.Cast(flags, to=TensorProto.INT32), keepdims=0), to=TensorProto.BOOL)
