"""An evaluation subset as the tables that mteb's retrieval tasks read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fanoise_lightning.data.batches.evaluation import EvalDataset, EvalSuite
from fanoise_lightning.data.batches.skipped import SkipLog
from fanoise_lightning.data.images.decode import ImageError, decode
from fanoise_lightning.data.images.store import ImageStore
from fanoise_lightning.data.rows.references import Reference, References
from fanoise_lightning.evaluation.ranks import rank

__all__ = ["SplitReader", "modalities", "outcomes"]

# Only of these is it known which decoder Pillow chooses if it may choose any.
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def modalities(items: References) -> str:
    """What these items are made of, in the letters of mteb's categories: ``"t"``, ``"i"`` or ``"it"``.

    Example:
        >>> import pyarrow as pa
        >>> modalities(References(pa.array(["a cat", ""]), pa.array(["", "cat.jpg"])))
        'it'
    """
    has_text = any(text.strip() for text in items.texts.to_pylist())
    return "i" * bool(items.has_image.any()) + "t" * has_text


@dataclass(frozen=True)
class SplitReader:
    """Reads the queries, candidates and right answers of a subset as mteb's ``RetrievalSplitData``.

    Args:
        suite: the subsets of a benchmark.
        number: which of them this is.
        skips: counts what the benchmark cannot read.
    """

    suite: EvalSuite
    number: int
    skips: SkipLog

    @property
    def dataset(self) -> EvalDataset:
        """The subset."""
        return self.suite.subsets[self.number]

    @property
    def revision(self) -> str:
        """A fingerprint of its queries and candidates, and of the size to which pictures are decoded."""
        decode_size = self.dataset.store.decode_size
        size = "" if decode_size is None else f" decode_size={decode_size}"
        return sha256((EvalSuite([self.dataset]).digest + size).encode()).hexdigest()[:40]

    @property
    def query_items(self) -> References:
        """The items that are queries, each once."""
        return self.dataset.items.take(self.dataset.queries.unique().numpy())

    @property
    def candidate_items(self) -> References:
        """The items that are candidates of any query, each once."""
        return self.dataset.items.take(self._candidate_numbers)

    @property
    def most_candidates(self) -> int:
        """How many candidates a query has, at most."""
        catalogue = self.dataset.catalogue
        return self.dataset.candidates.shape[1] + (0 if catalogue is None else len(catalogue))

    @property
    def _candidate_numbers(self) -> np.ndarray[Any, Any]:
        parts = [self.dataset.candidates.flatten()]
        if self.dataset.catalogue is not None:
            parts.append(self.dataset.catalogue)
        numbers = torch.cat(parts).unique()
        return numbers[numbers >= 0].numpy()

    def read(self) -> dict[str, Any]:
        """The tables: ``corpus`` and ``queries`` as ``datasets.Dataset``, ``relevant_docs``, ``top_ranked``.

        Pictures stay encoded, and are decoded batch by batch. Where `datasets` would decode others than this
        library does (transparency, 16 bits, `decode_size`), the table has ours as PNG.

        As on the scoreboard, a query whose own picture or right answers cannot be read is left out, and so
        is any other candidate that cannot be read; a warning counts them.

        Raises:
            TooManySkippedError: if more of the benchmark cannot be read than `skips` allows.
            ValueError: if no query is left.
        """
        queries, numbers = self.dataset.queries.tolist(), self._candidate_numbers.tolist()
        references = self.dataset.items.to_list()
        pictures, broken = self._pictures(references, {*queries, *numbers})
        own = self.suite.numbers[self.number]
        self.skips.add([self.suite.skip(int(own[item]), why) for item, why in broken.items()])
        self.skips.report(f"subset `{self.dataset.subset.name}`")
        ids = {item: _id(references[item]) for item in numbers if item not in broken}
        top_ranked, relevant = {}, {}
        for row, query in enumerate(queries):
            right, others = self._candidates(row)
            if query not in broken and (found := [ids[item] for item in right if item in ids]):
                name = f"{row:06d}"
                relevant[name] = dict.fromkeys(found, 1)
                top_ranked[name] = [*found, *(ids[item] for item in others if item in ids)]
        if not relevant:
            raise ValueError(
                f"subset `{self.dataset.subset.name}`: no query can be scored, the first because of "
                f"{next(iter(broken.values()))}. Check the image root, or leave the subset out"
            )
        kept = [queries[int(name)] for name in relevant]
        return {
            "queries": _table(list(relevant), [references[item] for item in kept], pictures),
            "corpus": _table(list(ids.values()), [references[item] for item in ids], pictures),
            "relevant_docs": relevant,
            "top_ranked": top_ranked,
        }

    def describe(self, name: str) -> str:
        """What messages call the item with this id in the tables."""
        references = self.dataset.items.to_list()
        if name.isdecimal() and int(name) < len(self.dataset.queries):
            reference, what = references[int(self.dataset.queries[int(name)])], f"query {int(name)}"
        else:
            items = (references[item] for item in self._candidate_numbers)
            reference, what = next(item for item in items if _id(item) == name), "a candidate"
        path = reference.image
        return f"{what}, `{path}`" if path and isinstance(path, str) else f"{what}, {reference.text[:80]!r}"

    def _candidates(self, row: int) -> tuple[list[int], list[int]]:
        """The right answers of a query, and its other candidates, each once."""
        own = [item for item in self.dataset.candidates[row].tolist() if item >= 0]
        count = 1 if self.dataset.num_right is None else int(self.dataset.num_right[row])
        right = list(dict.fromkeys(own[:count]))
        further: list[int] = []
        if self.dataset.catalogue is not None:
            others = {int(self.dataset.queries[row])}
            if self.dataset.excluded is not None:
                others.update(self.dataset.excluded[row].tolist())
            further = [item for item in self.dataset.catalogue.tolist() if item not in others]
        known = set(right)
        return right, [item for item in dict.fromkeys([*own[count:], *further]) if item not in known]

    def _pictures(
        self, references: Sequence[Reference], items: set[int]
    ) -> tuple[dict[str | bytes, bytes], dict[int, str]]:
        """The encoded picture of each path, and why each item without one has none."""
        pictures: dict[str | bytes, bytes] = {}
        broken: dict[int, str] = {}
        for item in sorted(items):
            path = references[item].image
            if path and path not in pictures:
                try:
                    pictures[path] = _encoded(self.dataset.store, path)
                except ImageError as error:
                    broken[item] = str(error)
        return pictures, broken


def _id(reference: Reference) -> str:
    """The hash of a candidate, so that no order of rows decides ties; other white space is another one."""
    image = reference.image if isinstance(reference.image, bytes) else reference.image.encode()
    return blake2b(reference.text.encode() + b"\0" + image, digest_size=8).hexdigest()


def _encoded(store: ImageStore, path: str | bytes) -> bytes:
    """An image file that `datasets` decodes to the pixels that the store decodes."""
    data, name = store.read(path)
    image = decode(data, name, store.decode_size)
    if data.startswith(_STARTS) and _decodes_to(data, image):
        return data
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _decodes_to(data: bytes, image: Image.Image) -> bool:
    from datasets import Image as ImageFeature  # type: ignore[import-untyped]

    try:
        found = ImageFeature().decode_example({"path": None, "bytes": data})
    except Exception:  # a damaged EXIF block raises almost anything
        return False
    return (found.mode, found.size) == (image.mode, image.size) and found.tobytes() == image.tobytes()


def _table(ids: list[str], references: list[Reference], pictures: dict[str | bytes, bytes]) -> Any:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"id": Value("string"), "text": Value("string"), "image": ImageFeature()})
    images = [{"path": None, "bytes": pictures[image]} if image else None for _, image in references]
    columns = {"id": ids, "text": [text for text, _ in references], "image": images}
    return Dataset.from_dict(columns, features=features)


def outcomes(
    results: dict[str, dict[str, float]], relevant: dict[str, dict[str, int]], name: str = ""
) -> Tensor:
    """What each query scores in precision@1, by this library's rule for ties.

    Args:
        results: the score of each candidate, by query and candidate.
        relevant: the right answers of each query.
        name: the subset, for messages.

    Returns:
        (Q,) float32, 0 to 1.

    Raises:
        ValueError: if a score is not finite.

    Example:
        >>> outcomes({"q": {"cat": 0.5, "dog": 0.5}}, {"q": {"cat": 1}})
        tensor([0.5000])
    """
    width, most = max(map(len, results.values())), max(map(len, relevant.values()))
    scores = torch.zeros(len(relevant), width, dtype=torch.float64)
    is_right = torch.zeros(len(relevant), most, dtype=torch.bool)
    mask = torch.zeros(len(relevant), width, dtype=torch.bool)
    for row, (query, right) in enumerate(relevant.items()):
        found = results[query]
        ordered = [*(item for item in right if item in found), *(item for item in found if item not in right)]
        scores[row, : len(ordered)] = torch.tensor([found[item] for item in ordered], dtype=torch.float64)
        is_right[row, : sum(item in found for item in right)] = True
        mask[row, : len(ordered)] = True
    return rank(scores, is_right, mask, name).precision_at_one().float()
