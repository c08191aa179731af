"""Approximate search by faiss, for catalogues where exact search takes too long."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fanoise_lightning._checks import check_at_least, check_choice
from fanoise_lightning._log import report
from fanoise_lightning.callbacks._files import whole_file, write_json
from fanoise_lightning.search.index import Hits, SearchIndex

__all__ = ["KINDS", "ApproximateIndex"]

KINDS = Literal["hnsw", "int8", "binary", "ivfpq"]

_TRAINING = 100_000  # rows at most that the cells and codes of ivfpq are learnt from
_FEWEST = 39 * 256  # that faiss wants for 256 codes
_CANDIDATES = 4  # times k come from faiss, and are put in order by their exact scores


class ApproximateIndex:
    """Search by an index of faiss beside the shards, which is built when it is not there.

    Four times as many rows as are asked for come from faiss, and are put in order by their exact scores
    (rescoring); some of the nearest rows may be missing among the hits.

    - ``"hnsw"`` is a graph, fast and accurate, of about the size of the embeddings.
    - ``"int8"`` compares rows of one byte a dimension, ``"binary"`` of one bit: the sign. Both go through all
      rows, in 1/2 and 1/16 of the memory of float16.
    - ``"ivfpq"`` codes a row in an eighth of its dimensions as bytes, and misses more.

    Args:
        index: the folder, opened.
        kind: one of these.

    Raises:
        ImportError: if faiss is not installed.
        ValueError: if the index is of other embeddings, or the catalogue is too small for ``"ivfpq"``.

    Example:
        >>> ApproximateIndex(SearchIndex("index"), "hnsw").search(queries)     # doctest: +SKIP
    """

    def __init__(self, index: SearchIndex, kind: KINDS) -> None:
        check_choice("kind", kind, get_args(KINDS))
        self.index, self.kind = index, kind
        self._faiss = _import_faiss()
        file = index.folder.path / f"{kind}.faiss"
        if not file.exists():
            report(f"building `{file}` for {len(index.folder):,} rows")
            self._write(file)
        self._search = self._read(file)

    def search(self, queries: Any, k: int = 10) -> Hits:
        """As :meth:`SearchIndex.search`; where faiss finds fewer than k rows, the search is exact."""
        check_at_least("k", k, 1)
        unit, k = self.index.unit(queries), min(k, len(self.index.folder))
        rows = unit.view(-1, self.index.folder.dimension)
        most = min(_CANDIDATES * k, len(self.index.folder))
        found = torch.from_numpy(self._search.search(self._coded(rows), most)[1])
        if (found < 0).any():
            return self.index.search(unit, k)
        asked = torch.arange(len(rows)).repeat_interleave(most)
        scores = self.index.score(rows[asked], found.view(-1)).view(found.shape)
        order = torch.from_numpy(np.lexsort((found, -scores)))[:, :k]
        shape = (*unit.shape[:-1], k)
        return Hits(scores.gather(1, order).view(shape), found.gather(1, order).view(shape))

    def _write(self, file: Path) -> None:
        built = self._build()
        with whole_file(file) as unfinished:
            write = self._faiss.write_index_binary if self.kind == "binary" else self._faiss.write_index
            write(built, str(unfinished))
        write_json(_note(file), _made_of(self.index))

    def _read(self, file: Path) -> Any:
        try:
            theirs = json.loads(_note(file).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # a killed run left none, or a part
            theirs = None
        if theirs != _made_of(self.index):
            raise ValueError(
                f"`{file}` is an index of other embeddings than those in `{file.parent}`: remove it, and "
                "it is built again"
            )
        try:
            read = self._faiss.read_index_binary if self.kind == "binary" else self._faiss.read_index
            opened = read(str(file))
        except RuntimeError as error:
            raise ValueError(f"`{file}` is damaged: remove it, and it is built again ({error})") from error
        width = self.index.folder.dimension
        if self.kind == "binary":
            width = -(-width // 8) * 8
        if (opened.d, opened.ntotal) != (width, len(self.index.folder)):
            raise ValueError(
                f"`{file}` has {opened.ntotal} rows of {opened.d} dimensions, `{file.parent}` has "
                f"{len(self.index.folder)} of {self.index.folder.dimension}: remove it, and it is built again"
            )
        self._set_effort(opened)
        return opened

    def _build(self) -> Any:
        folder, faiss = self.index.folder, self._faiss
        if self.kind == "binary":
            built = faiss.IndexBinaryFlat(-(-folder.dimension // 8) * 8)
        elif self.kind != "ivfpq":
            kind = {"hnsw": "HNSW32,SQfp16", "int8": "SQ8"}[self.kind]
            built = faiss.index_factory(folder.dimension, kind, faiss.METRIC_INNER_PRODUCT)
        else:
            if len(folder) < _FEWEST:
                raise ValueError(
                    f"`ivfpq` needs {_FEWEST:,} rows, `{folder.path}` has {len(folder):,}: use exact search"
                )
            codes = next(m for m in range(max(1, folder.dimension // 8), 0, -1) if folder.dimension % m == 0)
            cells = max(1, min(4096, len(folder) // 256))
            # np: codes are not reordered for a search by Hamming distance, which takes most of the training
            kind = f"IVF{cells},PQ{codes}np"
            built = faiss.index_factory(folder.dimension, kind, faiss.METRIC_INNER_PRODUCT)
        if not built.is_trained:
            built.train(self._sample())
        for shard in folder.shards():
            for part in shard.split(2**14):
                built.add(self._coded(F.normalize(part.float(), dim=1)))
        return built

    def _sample(self) -> np.ndarray[Any, Any]:
        """Rows from all over the catalogue, the same each time."""
        step = -(-len(self.index.folder) // _TRAINING)
        return torch.cat([F.normalize(s[::step].float(), dim=1) for s in self.index.folder.shards()]).numpy()

    def _coded(self, vectors: Tensor) -> np.ndarray[Any, Any]:
        """As faiss takes them: for ``"binary"`` the signs, eight to a byte, as in sentence-transformers."""
        found = vectors.numpy()
        return np.packbits(found > 0, axis=1) if self.kind == "binary" else found

    def _set_effort(self, opened: Any) -> None:
        if self.kind not in ("hnsw", "ivfpq"):
            return
        space = self._faiss.ParameterSpace()
        space.set_index_parameter(opened, *(("efSearch", 256) if self.kind == "hnsw" else ("nprobe", 64)))


def _note(file: Path) -> Path:
    return file.with_suffix(".json")


def _made_of(index: SearchIndex) -> dict[str, Any]:
    """What an index must have been built from: the model, and the rows."""
    manifest = index.folder.manifest
    content = json.dumps(manifest, sort_keys=True).encode()
    return {
        "model": index.folder.fingerprint,
        "dimension": index.folder.dimension,
        "rows": len(index.folder),
        "manifest": blake2b(content, digest_size=16).hexdigest(),
    }


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("`--index` needs faiss: `pip install 'fanoise-lightning[search]'`") from error
    return faiss
