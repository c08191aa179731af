"""A frozen encoder whose features are computed once, with a small trainable head on top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fanoise_lightning._checks import check_at_least
from fanoise_lightning.encoders.base import Encoder
from fanoise_lightning.encoders.eight_bit import to_floats
from fanoise_lightning.encoders.feature_store import KEY_BYTES, FeatureStore
from fanoise_lightning.encoders.fingerprint import fingerprint
from fanoise_lightning.encoders.heads import Head, make_head
from fanoise_lightning.encoders.pretrained import PretrainedEncoder
from fanoise_lightning.encoders.towers import (
    TowerCollate,
    TwoTowers,
    add_rows,
    text_alone,
)
from fanoise_lightning.sample import Sample, text_key

__all__ = ["CachedFeatures"]

TEXT, IMAGE, SAMPLE = "text", "image", "sample"


class CachedFeatures(PretrainedEncoder):
    """A frozen encoder with trainable heads; each text and image goes through the encoder once.

    Features are kept on disk, under a fingerprint of the encoder and the content of a text or image. A later
    epoch or run reads them through memory maps: no image is decoded, and the encoder does not run. With a
    two-tower encoder, texts and images have features and a head each, and a sample with both is the sum of
    two unit vectors, as in the encoder itself. Any other encoder has one feature a sample, and one head.

    Features are those of the encoder in eval mode and full precision, without augmentation: unit vectors
    times the root of their width, so that an entry is about 1.

    Args:
        encoder: it is frozen.
        folder: where the features are kept. Several encoders, runs and processes can share it.
        head: ``"linear"``, ``"mlp"`` or ``"residual"``, for each kind of feature.
        dim: the width of the embeddings; by default that of the encoder.
        hidden: the width of the hidden layer of a head.
        dropout: in the heads, 0 to 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> towers = OpenClipEncoder("ViT-B-32", pretrained="laion2b_s34b_b79k")     # doctest: +SKIP
        >>> encoder = CachedFeatures(towers, "features", head="residual")            # doctest: +SKIP
        >>> module = ContrastiveModule(encoder, optimizer=partial(AdamW, lr=1e-3))   # doctest: +SKIP
    """

    def __init__(
        self,
        encoder: Encoder,
        folder: str | Path,
        head: Head = "linear",
        dim: int | None = None,
        hidden: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.folder, self.head = encoder, str(folder), head
        self.dim, self.hidden, self.dropout = dim, hidden, dropout
        self.embedding_dim = encoder.embedding_dim if dim is None else dim
        check_at_least("dim", self.embedding_dim, 1)
        encoder.requires_grad_(False)
        self.kinds = (TEXT, IMAGE) if isinstance(encoder, TwoTowers) else (SAMPLE,)
        for kind in self.kinds:
            module = make_head(head, self._width(kind), self.embedding_dim, hidden, dropout)
            self.add_module(f"{kind}_head", module)
        self._collate: _CachedCollate | None = None
        self.register_load_state_dict_post_hook(_forget_collate)
        self.report(type(encoder).__name__)
        self.train()

    def _width(self, kind: str) -> int:
        return int(getattr(self.encoder, f"{kind}_dim", self.encoder.embedding_dim))

    @property
    def collate(self) -> _CachedCollate:  # type: ignore[override]
        """Looks features up, and collates what has none for the encoder; for workers."""
        if self._collate is None:  # not earlier: weights may be loaded after the constructor
            folder = Path(self.folder).expanduser() / self.fingerprint()
            stores = {kind: FeatureStore(folder / kind, self._width(kind)) for kind in self.kinds}
            self._collate = _CachedCollate(self.encoder.collate, stores)
        return self._collate

    def fingerprint(self) -> str:
        """32 hexadecimal digits: the encoder's weights and options, and its inputs of a text and an image."""
        return fingerprint(self.encoder)

    def forward(self, rows: Tensor, **batch: Tensor) -> Tensor:  # type: ignore[override]
        """Embed a collated batch of B samples.

        Args:
            rows: (B,), whatever they hold.
            batch: for each kind of feature, known features, what is missing, and the encoder's inputs for it.

        Returns:
            (B, D): unit vectors, or the sum of two of them.
        """
        parts = []
        for kind in self.kinds:
            if f"{kind}.known" in batch:
                own = {n.removeprefix(f"{kind}."): v for n, v in batch.items() if n.startswith(f"{kind}.")}
                features = self._features(kind, own)
                vectors = F.normalize(getattr(self, f"{kind}_head")(features).float(), dim=1)
                parts.append((own["rows"], vectors[own["index"]]))
        return add_rows(len(rows), parts)

    def _features(self, kind: str, batch: dict[str, Tensor]) -> Tensor:
        """(U, D): those that are known, and the others, computed and kept."""
        known = batch.pop("known")
        missing, keys = batch.pop("missing", None), batch.pop("keys", None)
        scale = known.shape[1] ** 0.5
        if missing is None or keys is None:
            return known * scale
        with torch.no_grad(), torch.autocast(known.device.type, enabled=False):
            inputs = {name: value for name, value in batch.items() if name not in ("rows", "index")}
            found = F.normalize(self._encode(kind, inputs).float(), dim=1)
        rows, names = found.cpu().numpy(), [row.tobytes().hex() for row in keys.cpu().numpy()]
        good = np.flatnonzero(np.isfinite(rows).all(1))  # a broken feature must not be kept
        self.collate.stores[kind].add([names[place] for place in good], rows[good])
        return known.index_copy(0, missing, found.to(known)) * scale

    def _encode(self, kind: str, inputs: dict[str, Tensor]) -> Tensor:
        if kind == SAMPLE:
            return self.encoder(**inputs)
        towers = cast(TwoTowers, self.encoder)
        if kind == TEXT:
            return towers.encode_text(**inputs)
        return towers.encode_image(**to_floats(inputs))

    def parts(self, batch: dict[str, Tensor]) -> tuple[bool, ...]:
        return tuple(f"{kind}.known" in batch for kind in self.kinds)

    def add_row(self, batch: dict[str, Tensor], parts: tuple[bool, ...]) -> dict[str, Tensor]:
        raise NotImplementedError("CachedFeatures trains small heads: use DDP, there is nothing to shard")


def _forget_collate(module: nn.Module, incompatible: Any) -> None:
    cast(CachedFeatures, module)._collate = None  # the encoder has other weights now


class _CachedCollate:
    """Looks features up by key; what has none is collated for the encoder.

    Args:
        inner: the encoder's collate.
        stores: of each kind of feature.
    """

    defers_images = True

    def __init__(self, inner: Any, stores: dict[str, FeatureStore]) -> None:
        self.inner, self.stores = inner, stores

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Collate B samples.

        Raises:
            ValueError: whatever the encoder's own collate refuses, of the samples that have no features yet.
        """
        if not samples:
            raise ValueError("there are no samples to collate")
        batch = {"rows": torch.zeros(len(samples), dtype=torch.uint8)}
        for kind, store in self.stores.items():
            own = self._own(kind, samples)
            if own:
                part = self._collate_kind(kind, store, own)
                batch |= {f"{kind}.{name}": value for name, value in part.items()}
        return batch

    def _own(self, kind: str, samples: Sequence[Sample]) -> dict[int, tuple[str, Sample]]:
        """Row to key and sample, of the samples that have this kind of feature."""
        if kind == SAMPLE:
            return {row: (sample.key, sample) for row, sample in enumerate(samples)}
        if kind == IMAGE:
            keys = {row: sample.image_keys for row, sample in enumerate(samples) if sample.image is not None}
            if any(len(own) > 1 for own in keys.values()):
                raise ValueError("a two-tower encoder takes one image per sample, got several")
            return {row: (own[0], samples[row]) for row, own in keys.items() if own}
        texts = {row: text_alone(sample) for row, sample in enumerate(samples)}
        return {row: (text_key(text), samples[row]) for row, text in texts.items() if text}

    def _collate_kind(
        self, kind: str, store: FeatureStore, own: dict[int, tuple[str, Sample]]
    ) -> dict[str, Tensor]:
        unique = dict(own.values())  # key to sample
        order = {key: place for place, key in enumerate(unique)}
        known, found = store.get(list(order))
        batch = {
            "known": torch.from_numpy(known),
            "index": torch.tensor([order[key] for key, _ in own.values()]),
            "rows": torch.tensor(list(own)),
        }
        if not found.all():
            missing = np.flatnonzero(~found)
            keys = [list(order)[place] for place in missing]
            batch |= self._inputs(kind, [unique[key] for key in keys])
            batch["missing"] = torch.from_numpy(missing)
            raw = b"".join(map(bytes.fromhex, keys))
            batch["keys"] = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, KEY_BYTES)
        return batch

    def _inputs(self, kind: str, samples: list[Sample]) -> dict[str, Tensor]:
        if kind == SAMPLE:
            return self.inner(samples)
        towers: TowerCollate = self.inner
        if kind == TEXT:
            return towers.tokenize([text_alone(sample) for sample in samples])
        return towers.transform([towers.prepare(sample.images[0]) for sample in samples])
