"""From embeddings to scores: precision@1, means and intervals, the scoreboard, MMEB's subsets."""

from __future__ import annotations

from fanoise_lightning.evaluation.precision_at_one import PrecisionAtOne
from fanoise_lightning.evaluation.scoreboard import Scoreboard
from fanoise_lightning.evaluation.scores import ReferenceScores, SubsetScore

__all__ = ["PrecisionAtOne", "ReferenceScores", "Scoreboard", "SubsetScore"]
