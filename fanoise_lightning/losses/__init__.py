"""Contrastive losses. A loss module takes the features of both sides; that call is where noise enters.

With several processes, the candidates of a query are the targets and hard negatives of all ranks, gathered
with their gradients, and each rank computes the rows of its own pairs. The mean of the losses over the ranks,
and of the gradients as DDP takes it, is that of one process with the joined batch.

A loss that knows which queries, targets and hard negatives are the same does not use a right answer, or the
query itself, as a negative; see :class:`~fanoise_lightning.losses.contrastive_batch.ContrastiveBatch`. The
ids of queries, targets and hard negatives are from one set. Without ids, every candidate except a query's own
target is a negative.
"""

from __future__ import annotations

from fanoise_lightning.losses.info_nce import InfoNCE
from fanoise_lightning.losses.matryoshka import MatryoshkaLoss
from fanoise_lightning.losses.sigmoid import SigmoidLoss
from fanoise_lightning.losses.tap import FeatureTap

__all__ = ["FeatureTap", "InfoNCE", "MatryoshkaLoss", "SigmoidLoss"]
