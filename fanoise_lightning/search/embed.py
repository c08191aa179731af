"""``embed``: a whole catalogue, by Lightning's predict, into a folder of shards."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from fanoise_lightning._checks import check_at_least, check_choice, check_names
from fanoise_lightning._log import report
from fanoise_lightning.data.items import Items, read_items
from fanoise_lightning.encoders.fingerprint import fingerprint
from fanoise_lightning.module import ContrastiveModule
from fanoise_lightning.search.catalogue import Catalogue
from fanoise_lightning.search.embedding_run import Finish, alone, begin, is_complete, tidy
from fanoise_lightning.search.folder import FORMAT, EmbeddingFolder
from fanoise_lightning.search.shard_writer import Shards, ShardWriter
from fanoise_lightning.training.describe import describe

__all__ = ["embed"]

Dtype = Literal["float16", "float32"]

# those of the Trainer that are not set here and leave no rows out
_OPTIONS = signature(Trainer).parameters.keys() - {
    "callbacks",
    "use_distributed_sampler",
    "fast_dev_run",
    "limit_predict_batches",
}
_PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_PLACES = ("model", "pretrained", "adapter", "folder")  # arguments of encoders that may be paths


def embed(
    module: ContrastiveModule,
    source: Any,
    out: str | Path,
    *,
    text: str | None = None,
    image: str | None = None,
    id: str | None = None,
    image_root: str | Path | None = None,
    dtype: Dtype = "float16",
    batch_size: int = 64,
    shard_size: int = 4096,
    num_workers: int = 2,
    checkpoint: str | Path | None = None,
    **trainer: Any,
) -> EmbeddingFolder:
    """Embed a catalogue into a folder that ``fanoise search`` and you can read.

    A run that was killed continues when it is started again: shards that are there are not computed again.
    The result is the same, bit for bit, for any number of processes and however often it was killed. A row
    whose picture cannot be read, or that has neither text nor picture, is skipped, and listed in the manifest
    with the reason.

    Args:
        module: embeds the rows. It is in eval mode meanwhile.
        source: the catalogue: a file, folder, table or list, as of
            :class:`~fanoise_lightning.PairDataModule`.
        out: the folder to write to, new, empty, or of the same run.
        text: the column of texts.
        image: the column of pictures.
        id: the column of ids.
        image_root: what picture paths are relative to.
        dtype: of the embeddings on disk: ``"float16"`` is half the size, and exact to about 0.0005.
        batch_size: rows that go through the encoder at once, in each process.
        shard_size: rows in a shard, which one process computes; rounded up to a multiple of `batch_size`.
        num_workers: processes that read pictures and tokenise, for each process that embeds.
        checkpoint: the file that holds the weights of `module`: `fanoise search` reads them from there.
        trainer: arguments of Lightning's ``Trainer``, such as ``devices=2`` or ``precision="bf16-mixed"``.
            Precisions that convert the weights are refused: `module` would stay converted.

    Returns:
        The folder, opened.

    Raises:
        FileNotFoundError: if the source, its pictures or the checkpoint are missing.
        ValueError: if an argument is out of range, the source cannot be read, `out` is another run's or holds
            other files, an embedding is not finite, or every row was skipped.
        OSError: if `out` cannot be written, its disk has too little space, or another run writes to it.

    Example:
        >>> folder = embed(module, "products.csv", "index", image_root="images")     # doctest: +SKIP
        >>> len(folder), folder.dimension                                            # doctest: +SKIP
        (4998, 512)
    """
    check_choice("dtype", dtype, Dtype)
    check_at_least("batch_size", batch_size, 1)
    check_at_least("shard_size", shard_size, 1)
    check_at_least("num_workers", num_workers, 0)
    check_names(trainer, sorted(_OPTIONS), "argument of `trainer`")
    precision = str(trainer.get("precision") or "32-true")
    precision = _PRECISIONS.get(precision, precision)
    if precision not in _PRECISIONS.values():
        raise ValueError(
            f"`precision` {precision!r} would leave the module converted: use one of "
            f"{', '.join(map(repr, _PRECISIONS.values()))}, or convert it before, as with `module.bfloat16()`"
        )
    if checkpoint is not None and not Path(checkpoint).expanduser().is_file():
        raise FileNotFoundError(f"there is no checkpoint `{checkpoint}`")
    if checkpoint is None and module.pairs_seen:
        rank_zero_warn(
            "the module was trained, and `checkpoint` names no file with its weights: `fanoise search` will "
            "need one as `--model`. Save it with `trainer.save_checkpoint`, and pass it as `checkpoint`"
        )
    items = read_items(source, text=text, image=image, id=id, image_root=image_root)
    columns = {"id": items.ids, "text": items.references.texts, "image": items.references.images}
    rows = pa.table(columns).combine_chunks()
    header = _header(module, items, rows, dtype)
    size = -(-shard_size // batch_size) * batch_size  # no batch is of two shards
    header["made_with"] |= {
        "precision": precision,
        "batch_size": batch_size,
        "shard_size": size,
    }
    if checkpoint is not None:
        header["model"]["checkpoint"] = str(Path(checkpoint).expanduser().resolve())
    key = blake2b(json.dumps(header["made_with"], sort_keys=True).encode(), digest_size=16).hexdigest()
    shards = Shards(Path(out).expanduser(), rows, size, key)
    with alone(shards.folder):
        begin(shards, header)
        if is_complete(shards):
            rank_zero_only(tidy)(shards.folder)
            report(f"`{shards.folder}` is complete: nothing is left to embed")
            return EmbeddingFolder(shards.folder)
        data = Catalogue(items, shards, module.collate, batch_size, num_workers)
        own = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        callbacks = [ShardWriter(shards, getattr(torch, dtype)), Finish(shards, header)]
        with _quiet():
            runner = Trainer(**{**own, **trainer}, callbacks=callbacks, use_distributed_sampler=False)
            runner.predict(module, datamodule=data, return_predictions=False)
        return EmbeddingFolder(shards.folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing but warnings from Lightning: no list of devices, no tips."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated")  # by Lightning itself
            yield
    finally:
        logger.setLevel(level)


def _header(module: ContrastiveModule, items: Items, rows: pa.Table, dtype: Dtype) -> dict[str, Any]:
    """What the manifest says from the start, and in ``made_with`` what must be the same to continue."""
    digest = blake2b(digest_size=16)
    for batch in rows.to_batches(max_chunksize=4096):
        digest.update(json.dumps([column.to_pylist() for column in batch.columns]).encode())
    if items.empty:
        digest.update(json.dumps([row["id"] for row in items.empty]).encode())
    root = None if items.root is None else str(items.root.path)
    model = fingerprint(module.encoder)
    return {
        "format": FORMAT,
        "model": {
            "fingerprint": model,
            "description": _with_whole_paths(describe(module.encoder)),
            "checkpoint": None,
        },
        "dimension": module.encoder.embedding_dim,
        "dtype": dtype,
        "normalized": True,
        "source": items.source,
        "source_rows": len(items) + len(items.empty),
        "image_root": root,
        "skipped": list(items.empty),
        "made_with": {"model": model, "source": digest.hexdigest(), "image_root": root, "dtype": dtype},
    }


def _with_whole_paths(value: Any) -> Any:
    """A description whose local models are found from any directory."""
    if not isinstance(value, dict):
        return value
    return {
        name: _whole(item) if name in _PLACES else _with_whole_paths(item) for name, item in value.items()
    }


def _whole(place: Any) -> Any:
    if not isinstance(place, str):
        return place
    scheme = "local-dir:" if place.startswith("local-dir:") else ""
    path = Path(place.removeprefix(scheme))
    return f"{scheme}{path.resolve()}" if path.exists() else place
