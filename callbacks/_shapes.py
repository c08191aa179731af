"""The shape of the noise from step to step: over ranks, averaged over batches, kept in between."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fanoise_lightning.distributed import all_reduce_sum, gather, world_size
from fanoise_lightning.noise import Energy, NoiseShape, Scaling, moment_shape, noise_shape
from fanoise_lightning.spectrum import as_matrix, full_precision

Scope = Literal["local", "global"]


class ShapeMemory:
    """Decomposes every n-th batch of a side, or a moving average of X^T X, and keeps the shape in between.

    Args:
        scaling: the scaling law.
        energy: the amount of noise.
        momentum: of the average of X^T X, (D, D); 0 for this batch alone.
        every_n_steps: how often to decompose.
        scope: whose features to decompose: this rank's, or all ranks' together. All ranks must then ask for
            the same sides and steps, with features of the same shape.
    """

    def __init__(
        self, scaling: Scaling, energy: Energy, momentum: float, every_n_steps: int, scope: Scope = "local"
    ) -> None:
        self.scaling: Scaling = scaling
        self.energy: Energy = energy
        self.momentum = momentum
        self.every_n_steps = every_n_steps
        self.scope: Scope = scope
        self._shapes: dict[str, NoiseShape] = {}
        # Side to X^T X of arbitrary scale (the scaling laws divide it out) and how many rows went in.
        self._moments: dict[str, tuple[Tensor, int]] = {}

    def shape(self, side: str, features: Tensor, step: int) -> NoiseShape:
        """The shape for the features (B, D) of a side in the given step, counted from 0.

        Raises:
            torch.linalg.LinAlgError: if the decomposition does not converge; what is kept stays as it was.
        """
        if self.momentum:
            self._average(side, features)
        known = self._shapes.get(side)
        if known is not None:
            known = known.to(features.device)  # a restored shape comes on the CPU
        if step % self.every_n_steps and known is not None and known.dim == features.shape[1]:
            return known
        shape = self._decompose(side, features)
        if self.every_n_steps > 1:
            if known is not None:
                shape = shape.unless_broken(known)  # one broken batch must not cost the next ones their noise
            self._shapes[side] = shape
        return shape

    def _decompose(self, side: str, features: Tensor) -> NoiseShape:
        rows = self._ranks * len(features)
        if self.momentum:
            moment, rows = self._moments[side]
        elif self._ranks == 1 or self.scaling == "uniform":
            return noise_shape(features, self.scaling, self.energy)
        elif rows <= features.shape[1]:
            # All rows together are less to send than X^T X, and their own Gram matrix is the smaller one.
            return noise_shape(gather(features), self.scaling, self.energy)
        else:
            moment = self._moment(features)
        return moment_shape(moment, min(rows, len(moment)), self.scaling, self.energy)

    @property
    def _ranks(self) -> int:
        return world_size() if self.scope == "global" else 1

    def _moment(self, features: Tensor) -> Tensor:
        """X^T X (D, D) of this rank, or of all."""
        with full_precision(features):
            x = as_matrix(features)
            gram = x.T @ x
            return all_reduce_sum(gram) if self._ranks > 1 else gram

    def _average(self, side: str, features: Tensor) -> None:
        gram = self._moment(features)
        known, rows = self._moments.get(side, (torch.zeros_like(gram), 0))
        known = known.to(gram.device)
        new = known.lerp(gram, 1 - self.momentum)
        kept = torch.where(new.isfinite().all(), new, known)
        self._moments[side] = kept, rows + self._ranks * len(features)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to draw the same noise: plain data and tensors."""
        shapes = {side: (shape.dim, shape.factors) for side, shape in self._shapes.items()}
        return {"shapes": shapes, "moments": dict(self._moments)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._shapes = {side: NoiseShape(*shape) for side, shape in state_dict["shapes"].items()}
        self._moments = dict(state_dict["moments"])
