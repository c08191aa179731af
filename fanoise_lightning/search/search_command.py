"""``fanoise search DIR QUERY``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fanoise_lightning._checks import check_at_least
from fanoise_lightning._user_errors import Parser
from fanoise_lightning.callbacks._files import whole_file
from fanoise_lightning.data.images.roots import ImageRoot
from fanoise_lightning.encoders.fingerprint import fingerprint
from fanoise_lightning.module import ContrastiveModule
from fanoise_lightning.search.answers import answer, metrics
from fanoise_lightning.search.approximate import KINDS, ApproximateIndex
from fanoise_lightning.search.folder import EmbeddingFolder
from fanoise_lightning.search.index import SearchIndex
from fanoise_lightning.search.model import hide_loading, model_of_checkpoint, model_of_manifest
from fanoise_lightning.search.page import Side, search_page
from fanoise_lightning.search.pictures import Pictures
from fanoise_lightning.search.queries import Query, read_queries

__all__ = ["check_model", "main"]


def main(args: Sequence[str]) -> None:
    """The ``fanoise search`` command.

    Args:
        args: the command line after the command's name.

    Raises:
        ValueError: if something cannot be searched.
    """
    _search(_parser().parse_args(args))


def check_model(module: ContrastiveModule, folder: EmbeddingFolder) -> None:
    """Refuse a model that did not embed a folder: its vectors would be compared with those of another.

    Args:
        module: embeds the queries.
        folder: the catalogue.

    Raises:
        ValueError: if it is not the model of the folder.
    """
    width, own = module.encoder.embedding_dim, fingerprint(module.encoder)
    if own != folder.fingerprint:
        known = folder.manifest["model"].get("checkpoint") or "which its manifest does not name"
        raise ValueError(
            f"`{folder.path}` ({folder.dimension} dimensions, {folder.fingerprint[:8]}) was embedded by "
            f"another model than this one ({width} dimensions, {own[:8]}): pass the checkpoint that embedded "
            f"it ({known}) with `--model`, or embed the catalogue again"
        )


def _parser() -> Parser:
    parser = Parser(
        "fanoise search", description="Search what `fanoise embed` wrote, by text, by picture, or by both."
    )
    add = parser.add_argument
    add("folder", type=str, help="What `fanoise embed` wrote.")
    add("query", type=str, nargs="?", default="", help="A text.")
    add("--image", type=str | None, default=None, help="A picture to search with, alone or with the text.")
    add(
        "--queries",
        type=str | None,
        default=None,
        help="A file of queries instead: a text per line, or JSON lines, CSV or parquet with `text`, `image` "
        "and `right`, the id of the right answer.",
    )
    add("--k", type=int, default=10, help="How many hits.")
    add("--html", type=str | None, default=None, help="A page to write, with the pictures.")
    add(
        "--image_root",
        type=str | None,
        default=None,
        help="The folder or zip archive of the pictures, if they were moved or have absolute paths.",
    )
    add("--against", type=str | None, default=None, help="A folder of another model to compare with.")
    add("--model", type=str | None, default=None, help="The checkpoint of DIR, if it was moved.")
    add("--against_model", type=str | None, default=None, help="The checkpoint of that other folder.")
    add("--index", type=KINDS | None, default=None, help="Approximate search by faiss; default: exact.")
    add("--allow", type=list[str] | str | None, default=None, help="What a checkpoint may name, see fit.")
    add("--trust_remote_code", type=bool, default=False, help="Run the model's own Python code.")
    return parser


def _search(given: Namespace) -> None:
    if given.queries and (given.query or given.image):
        raise ValueError("give one query, or a file of them with `--queries`, not both")
    # what is wrong is told before a model is loaded
    check_at_least("k", given.k, 1)
    if given.image_root is not None:
        ImageRoot(given.image_root)
    if given.queries:
        queries = read_queries(given.queries)
    else:
        queries = [Query(given.query, Path(given.image).expanduser() if given.image else None)]
        queries[0].sample()  # it may be empty
    if given.html is not None and Path(given.html).expanduser().is_dir():
        raise IsADirectoryError(
            f"`--html` is a folder, `{given.html}`: name a file to write, such as hits.html"
        )
    hide_loading()
    after = _side(given, queries, given.folder, given.model)
    before = _side(given, queries, given.against, given.against_model) if given.against else None
    if before is not None:
        after, before = _named(after, "after"), _named(before, "before")
    console = Console()
    for side in (before, after) if before is not None else (after,):
        console.print(_table(queries, side))
    if given.html is not None:
        page = Path(given.html).expanduser()
        with whole_file(page) as file:
            file.write_text(search_page(queries, after, before), encoding="utf-8")
        missing = len(after.pictures.missing | (before.pictures.missing if before is not None else {}))
        left = f"; {missing:,} pictures could not be read, see the page" if missing else ""
        size = f"{page.stat().st_size / 1e3:,.0f} kB"
        console.print(f"wrote {escape(str(page))} ({size}){left}", soft_wrap=True)


def _side(given: Namespace, queries: Sequence[Query], path: str, checkpoint: str | None) -> Side:
    """What a folder answers."""
    folder = EmbeddingFolder(path)
    if checkpoint is not None:
        module = model_of_checkpoint(checkpoint, given.allow, given.trust_remote_code)
    else:
        module = model_of_manifest(folder.manifest, given.allow, given.trust_remote_code)
    check_model(module, folder)
    embedded = torch.as_tensor(module.encode([query.sample() for query in queries]))
    index = SearchIndex(folder)
    found = (ApproximateIndex(index, given.index) if given.index else index).search(embedded, given.k)
    about = f"{len(folder):,} rows of {folder.manifest['source']}, in {folder.path}"
    if given.index:
        about += f", searched with {given.index}"
    root = given.image_root or folder.manifest["image_root"]
    pictures = Pictures(root, 160 if len(queries) > 1 else 256)
    return Side(folder.path.name, about, answer(index, queries, embedded, found), pictures)


def _named(side: Side, when: str) -> Side:
    return Side(when, side.about, side.answers, side.pictures)


def _table(queries: Sequence[Query], side: Side) -> Table:
    """For a terminal: the hits of one query, or how a list of them was answered."""
    table = Table(title=escape(side.about), title_justify="left", box=SIMPLE)
    found = metrics(side.answers)
    if len(queries) == 1:
        for name in ("rank", "score"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("id", "text", "picture"):
            table.add_column(name, overflow="ellipsis", no_wrap=True)
        for hit in side.answers[0].hits:
            row = (str(hit.rank), f"{hit.score:.3f}", hit.row.id, hit.row.text, hit.row.image)
            table.add_row(*map(_cell, row), style="bold" if hit.right else None)
    elif found:
        for name in found:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_row(
            *(f"{v:,.1f}" if name == "median rank" else f"{100 * v:.1f}" for name, v in found.items())
        )
    else:
        for name in ("query", "score", "id", "text"):
            table.add_column(name, overflow="ellipsis", no_wrap=True)
        for query, own in zip(queries, side.answers):
            asked = query.text or str(query.image)
            best = [(f"{hit.score:.3f}", hit.row.id, hit.row.text) for hit in own.hits[:1]]
            table.add_row(*map(_cell, (asked, *(best[0] if best else ()))))
    return table


def _cell(text: str) -> str:
    """A text of others on one line, without what a terminal would obey."""
    return escape("".join(c if c.isprintable() else " " for c in text[:200]))
