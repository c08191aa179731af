"""The shape of the noise from step to step: over all ranks, averaged over batches, kept in between."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fanoise_lightning.distributed import all_reduce_sum, exchange, gather, world_size
from fanoise_lightning.laws import Scaling, law_name
from fanoise_lightning.noise import (
    Energy,
    NoiseShape,
    law_total,
    moment_shape,
    moment_total,
    noise_shape,
)
from fanoise_lightning.spectrum import second_moment

Scope = Literal["local", "global"]
Key = tuple[str, int, int]  # a side, the call of the loss in its batch, and D


class ShapeMemory:
    """Decomposes every n-th batch of a side, or a moving average of X^T X, and keeps the shape in between.

    Args:
        scaling: the scaling law.
        energy: the amount of noise; ``"paper"`` takes that of the batch, even if the shape is averaged.
        momentum: the momentum of the average of X^T X, (D, D); 0 uses only the current batch.
        every_n_steps: how often to decompose.
        scope: whose features to decompose: this rank's, or those of all ranks together. All ranks must then
            ask for the same sides and steps, with features of the same width.
    """

    def __init__(
        self, scaling: Scaling, energy: Energy, momentum: float, every_n_steps: int, scope: Scope = "local"
    ) -> None:
        self.scaling: Scaling = scaling
        self.energy: Energy = energy
        self.momentum = momentum
        self.every_n_steps = every_n_steps
        self.scope: Scope = scope
        self._shapes: dict[Key, NoiseShape] = {}
        self._moments: dict[Key, Tensor] = {}  # X^T X of arbitrary scale, which the scaling laws cancel

    def shape(self, side: str, features: Tensor, step: int, call: int = 0) -> NoiseShape:
        """The shape for the features (B, D) of a side.

        Args:
            side: the side whose statistics to continue.
            features: (B, D).
            step: the number of the batch, from 0.
            call: the number of the call of the loss in the batch, from 0: each has statistics of its own.

        Raises:
            torch.linalg.LinAlgError: if the decomposition does not converge; what is kept stays as it was.
        """
        key = side, call, features.shape[1]
        if self.momentum:
            self._average(key, features)
        known = self._shapes.get(key)
        if known is not None:
            known = known.to(features.device)  # a restored shape is on the CPU
        if step % self.every_n_steps and known is not None:
            return known
        shape = self._decompose(key, features)
        if self.every_n_steps > 1:
            shape = shape.folded()
            if known is not None:
                shape = shape.unless_broken(known)  # one broken batch must not cost later ones their noise
            self._shapes[key] = shape
        return shape

    def _decompose(self, key: Key, features: Tensor) -> NoiseShape:
        if self.scaling == "uniform":
            return noise_shape(features, self.scaling, self.energy)
        rows, dim = self._rows(features), features.shape[1]
        joined = features if len(rows) == 1 else None
        if joined is None and len(set(rows)) == 1 and sum(rows) <= dim:
            joined = gather(features)  # less to send than X^T X, and with a smaller Gram matrix
        if joined is not None and not self.momentum:
            return noise_shape(joined, self.scaling, self.energy)
        moment = self._moments[key] if self.momentum else self._moment(features)
        rank = min(sum(rows), dim)
        total: Tensor | float | None = None  # by default the law's own for `moment`
        if self.energy == "constant":
            total = dim
        elif joined is not None:
            total = law_total(joined, self.scaling)
        elif self.momentum:
            total = moment_total(self._moment(features), rank, self.scaling)
        work = torch.float64 if features.dtype == torch.float64 else torch.float32
        return moment_shape(moment, self.scaling, total, rank=rank, dtype=work)

    def _rows(self, features: Tensor) -> list[int]:
        """The number of rows of each rank whose features are decomposed together."""
        if self.scope == "local" or world_size() == 1:
            return [len(features)]
        return [rows for (rows,) in exchange((len(features),))]

    def _moment(self, features: Tensor) -> Tensor:
        """X^T X (D, D) of this rank, or of all."""
        moment = second_moment(features)
        return moment if self.scope == "local" else all_reduce_sum(moment)

    def _average(self, key: Key, features: Tensor) -> None:
        gram = self._moment(features)
        known = self._moments.get(key, torch.zeros_like(gram)).to(gram.device)
        new = known.lerp(gram, 1 - self.momentum)
        self._moments[key] = torch.where(new.isfinite().all(), new, known)

    def state_dict(self) -> dict[str, Any]:
        """The plain data and tensors that a resumed run needs to draw the same noise."""
        return {
            "law": (law_name(self.scaling), self.energy),
            "shapes": {key: (shape.dim, shape.factors) for key, shape in self._shapes.items()},
            "moments": dict(self._moments),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict``: averages hold for any law, shapes only for their own."""
        if tuple(state_dict["law"]) == (law_name(self.scaling), self.energy):
            self._shapes = {key: NoiseShape(*shape) for key, shape in state_dict["shapes"].items()}
        self._moments = dict(state_dict["moments"])
