"""A trained module as a model of mteb."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fanoise_lightning.data.batches.refusals import refusals
from fanoise_lightning.encoders.fingerprint import fingerprint
from fanoise_lightning.evaluation.ties import score_dtype
from fanoise_lightning.export.mteb_tasks import RefusedError, import_mteb
from fanoise_lightning.module import ContrastiveModule
from fanoise_lightning.sample import Sample

__all__ = ["MtebEncoder"]


class MtebEncoder:
    """A :class:`~fanoise_lightning.ContrastiveModule` as an encoder of mteb (its ``EncoderProtocol``).

    It takes texts, pictures and both, and compares by cosine.

    Args:
        module: the module, on its device.
        name: ``"organization/model"``: mteb writes results to ``results/organization__model/{revision}/``.
        revision: of the weights. By default a fingerprint of them, so that mteb, which does not run a task
            again whose result it has, never takes another model's for yours.
        training_datasets: the names of mteb's tasks whose data the model was trained on, such as
            ``["MMEB-CIRR"]``: leaderboards mark them. ``None`` if that is unknown.

    Raises:
        ImportError: if mteb is not installed.
        ValueError: if `name` has no organization.

    Example:
        >>> model = MtebEncoder(module, "me/my-model")                              # doctest: +SKIP
        >>> mteb.evaluate(model, mteb.get_tasks(["CIRRIT2IRetrieval"]))             # doctest: +SKIP
    """

    def __init__(
        self,
        module: ContrastiveModule,
        name: str,
        revision: str | None = None,
        training_datasets: Iterable[str] | None = None,
    ) -> None:
        import_mteb()
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        if name.count("/") != 1 or not all(name.split("/")):
            raise ValueError(
                f"`name` must be 'organization/model', as mteb keeps results by it, got {name!r}"
            )
        self.module = module
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": revision or fingerprint(module.encoder),
                "modalities": ["text", "image"],
                "embed_dim": module.encoder.embedding_dim,
                "n_parameters": sum(parameter.numel() for parameter in module.encoder.parameters()),
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["PyTorch"],
                "training_datasets": None if training_datasets is None else set(training_datasets),
            }
        )

    def encode(self, inputs: Iterable[dict[str, Any]], **kwargs: Any) -> Tensor:
        """Embed what a loader of mteb yields.

        Args:
            inputs: batches with ``"text"``, ``"image"`` or both.
            kwargs: what mteb says about the task; not needed.

        Returns:
            (n, D) float32 unit vectors, on the CPU.

        Raises:
            RefusedError: if the encoder refuses an item, such as a picture that is too narrow.
        """
        found = [self._encode(batch) for batch in inputs]
        return torch.cat(found) if found else torch.empty(0, self.module.encoder.embedding_dim)

    def _encode(self, batch: dict[str, Any]) -> Tensor:
        samples = _samples(batch)
        try:
            return self.module.encode(samples, len(samples))
        except Exception as error:  # of any kind: whatever processors raise
            refused = refusals(self.module.encoder.collate, [[sample] for sample in samples], error)
            place, why = next(iter(refused.items()))
            raise RefusedError(batch["id"][place] if "id" in batch else "", why) from error

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """The cosine of each of n unit vectors with each of m, (n, m) float64."""
        return _exact(embeddings1) @ _exact(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """The cosine of each of n unit vectors with its own other one, (n,) float64."""
        return (_exact(embeddings1) * _exact(embeddings2)).sum(dim=1)


def _samples(batch: dict[str, Any]) -> list[Sample]:
    # mteb strips the text of a document; "body" is as it was
    texts, images = batch.get("body", batch.get("text")), batch.get("image")
    texts = texts or [""] * len(images or ())
    return [Sample(text, image) for text, image in zip(texts, images or [None] * len(texts))]


def _exact(embeddings: Any) -> Tensor:
    embeddings = torch.atleast_2d(torch.as_tensor(embeddings))
    return embeddings.to(score_dtype(embeddings.device))
