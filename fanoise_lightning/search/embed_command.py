"""``fanoise embed SOURCE --model CHECKPOINT --out DIR``."""

from __future__ import annotations

from collections.abc import Sequence

from fanoise_lightning._user_errors import Parser
from fanoise_lightning.search.embed import Dtype, embed
from fanoise_lightning.search.model import hide_loading, model_of_checkpoint, model_of_recipe

__all__ = ["main"]


def main(args: Sequence[str]) -> None:
    """The ``fanoise embed`` command.

    Args:
        args: the command line after the command's name.

    Raises:
        ValueError: if something cannot be embedded.
    """
    given = _parser().parse_args(args)
    if (given.model is None) == (given.config is None):
        raise ValueError("name the model: a checkpoint with `--model`, or a recipe with `--config`")
    hide_loading()
    if given.model is not None:
        module = model_of_checkpoint(given.model, given.allow, given.trust_remote_code)
    else:
        module = model_of_recipe(given.config)
    embed(
        module,
        given.source,
        given.out,
        text=given.text,
        image=given.image,
        id=given.id,
        image_root=given.image_root,
        dtype=given.dtype,
        batch_size=given.batch_size,
        shard_size=given.shard_size,
        num_workers=given.num_workers,
        checkpoint=given.model,
        **given.trainer,
    )


def _parser() -> Parser:
    parser = Parser(
        "fanoise embed",
        description="Embed a catalogue for `fanoise search`. The same command continues a killed run.",
    )
    add = parser.add_argument
    add("source", type=str, help="A file or folder of rows, a folder of pictures, or a hub id.")
    add("--out", type=str, required=True, help="The folder to write to.")
    add("--model", type=str | None, default=None, help="A checkpoint.")
    add("--config", type=str | None, default=None, help="A recipe, for its encoder before training.")
    add("--text", type=str | None, default=None, help="The column of texts.")
    add("--image", type=str | None, default=None, help="The column of pictures.")
    add("--id", type=str | None, default=None, help="The column of ids.")
    add("--image_root", type=str | None, default=None, help="What picture paths are relative to.")
    add("--dtype", type=Dtype, default="float16", help="Of the embeddings on disk.")
    add("--batch_size", type=int, default=64, help="Rows that go through the encoder at once.")
    add("--shard_size", type=int, default=4096, help="Rows in a file; one process computes it.")
    add("--num_workers", type=int, default=2, help="Processes that read pictures, for each that embeds.")
    add(
        "--trainer",
        type=dict[str, bool | int | float | str],
        default={},
        help="Arguments of Lightning's Trainer: --trainer.devices=2 --trainer.precision=bf16-mixed.",
    )
    add("--allow", type=list[str] | str | None, default=None, help="What the checkpoint may name, see fit.")
    add("--trust_remote_code", type=bool, default=False, help="Run the model's own Python code.")
    return parser
