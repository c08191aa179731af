"""Contrastive losses. A loss module takes the features of both sides; that call is where noise enters.

With several processes the candidates of a query are the targets and hard negatives of all ranks, gathered
with their gradients, and each rank computes the rows of its own pairs. The mean over the ranks, of the losses
and of the gradients as DDP takes it, is that of one process with the joined batch.

A loss that is told which queries, targets and hard negatives are the same takes neither a right answer nor
the query itself for a negative; see `fanoise_lightning.losses.candidates`. The numbers that tell so are of
one set for all three. Without them every candidate but the own target is a negative.
"""

from __future__ import annotations

from fanoise_lightning.losses.info_nce import InfoNCE
from fanoise_lightning.losses.sigmoid import SigmoidLoss
from fanoise_lightning.losses.tap import FeatureTap

__all__ = ["FeatureTap", "InfoNCE", "SigmoidLoss"]
