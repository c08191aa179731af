"""``fanoise export CHECKPOINT OUT``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fanoise_lightning._user_errors import Parser
from fanoise_lightning.export.export_encoder import export_encoder
from fanoise_lightning.module import ContrastiveModule

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """The ``fanoise export`` command.

    Args:
        args: the command line; by default ``sys.argv[2:]``.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        TypeError: as :func:`export_encoder`.
        ValueError: as :func:`export_encoder`.
    """
    given = _parser().parse_args(sys.argv[2:] if args is None else args)
    module = read_checkpoint(given.checkpoint, given.allow, given.trust_remote_code)
    export_encoder(module, given.out, merge=not given.adapter_only, onnx=given.onnx, verify=given.verify)


def read_checkpoint(path: str, allow: str | list[str] | None, trust_remote_code: bool) -> ContrastiveModule:
    """The module of a checkpoint, on the CPU."""
    checkpoint = Path(path).expanduser()
    if not checkpoint.is_file():
        raise FileNotFoundError(f"there is no checkpoint `{checkpoint}`")
    allowed = (allow,) if isinstance(allow, str) else tuple(allow or ())
    return ContrastiveModule.load_from_checkpoint(
        checkpoint, "cpu", allow=allowed, trust_remote_code=trust_remote_code
    )


def _parser() -> Parser:
    parser = Parser(
        "fanoise export",
        description="Write a folder for other libraries, and have those that are installed read it.",
    )
    add = parser.add_argument
    add("checkpoint", type=str, help="A checkpoint.")
    add("out", type=str, help="The folder to write to, new or empty.")
    add("--adapter_only", type=bool, default=False, help="Write the adapter without the model it belongs to.")
    add("--onnx", action="store_true", help="Write the towers to ONNX files as well.")
    add("--verify", type=bool, default=True, help="Have each library that is installed read the folder.")
    add("--allow", type=list[str] | str | None, default=None, help="What the checkpoint may name, see fit.")
    add("--trust_remote_code", type=bool, default=False, help="Run the model's own Python code.")
    return parser
