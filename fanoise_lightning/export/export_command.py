"""``fanoise export CHECKPOINT OUT``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace
from torch import Tensor

from fanoise_lightning._user_errors import Parser
from fanoise_lightning.encoders.fingerprint import fingerprint
from fanoise_lightning.export.export_encoder import export_encoder
from fanoise_lightning.export.push import check_push, push_folder
from fanoise_lightning.export.rotation import spectral_rotation
from fanoise_lightning.export.staging import check_out
from fanoise_lightning.module import ContrastiveModule
from fanoise_lightning.search.folder import EmbeddingFolder
from fanoise_lightning.search.model import model_of_checkpoint

__all__ = ["main"]

_ROWS = 50_000  # at most, that a rotation is taken from


def main(args: Sequence[str]) -> None:
    """The ``fanoise export`` command.

    Args:
        args: the command line after the command's name.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        TypeError: as :func:`export_encoder`.
        ValueError: as :func:`export_encoder` and :func:`push_folder`.
        OSError: if the folder cannot be written, or pushed.
    """
    given = _parser().parse_args(args)
    repo_id = given.push_to_hub
    if repo_id is not None:
        check_push(repo_id)
        if not given.verify:
            raise ValueError("only what was read back is pushed: leave out `--verify=false`")
    elif given.private:
        raise ValueError("`--private` is for the repository that `--push_to_hub` names")
    check_out(given.out)
    before = signal.signal(signal.SIGTERM, _leave)  # from a scheduler: nothing half-written stays
    try:
        _export(given)
    finally:
        signal.signal(signal.SIGTERM, before)
    if repo_id is not None:
        push_folder(Path(given.out).expanduser(), repo_id, given.private)


def _export(given: Namespace) -> None:
    module = model_of_checkpoint(given.checkpoint, given.allow, given.trust_remote_code)
    rotation = None if given.rotate is None else rotation_of(given.rotate, module)
    export_encoder(
        module,
        given.out,
        merge=not given.adapter_only,
        rotation=rotation,
        onnx=given.onnx,
        verify=given.verify,
        checkpoint=given.checkpoint,
        scoreboard=given.scoreboard,
        name=given.push_to_hub,
    )


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


def rotation_of(path: str | Path, module: ContrastiveModule) -> Tensor:
    """The rotation of a sample that `fanoise embed` wrote; ValueError if another model embedded it."""
    folder = EmbeddingFolder(path)
    if folder.fingerprint != fingerprint(module.encoder):
        raise ValueError(f"`{path}` was embedded by another model: embed a sample with this checkpoint")
    step = -(-len(folder) // _ROWS)
    return spectral_rotation(torch.cat([shard[::step].float() for shard in folder.shards()]))


def _parser() -> Parser:
    parser = Parser(
        "fanoise export",
        description="Write a folder for other libraries, and have those that are installed read it.",
    )
    add = parser.add_argument
    add("checkpoint", type=str, help="A checkpoint.")
    add("out", type=str, help="The folder to write to, new or empty.")
    add("--adapter_only", type=bool, default=False, help="Write the adapter without the model it belongs to.")
    add(
        "--rotate",
        type=str | None,
        default=None,
        help="A folder of `fanoise embed`: rotate by its spectrum.",
    )
    add("--onnx", action="store_true", help="Write the towers to ONNX files as well.")
    add("--verify", type=bool, default=True, help="Have each library that is installed read the folder.")
    add("--scoreboard", type=str | None, default=None, help="The scores for the card: scores.json.")
    add("--push_to_hub", type=str | None, default=None, help="Then upload it, as user/name.")
    add("--private", action="store_true", help="Create that repository as a private one.")
    add("--allow", type=list[str] | str | None, default=None, help="What the checkpoint may name, see fit.")
    add("--trust_remote_code", type=bool, default=False, help="Run the model's own Python code.")
    return parser
