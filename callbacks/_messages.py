"""The messages of FANoise."""

from __future__ import annotations

import math
import warnings

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fanoise_lightning._log import report
from fanoise_lightning.noise import row_norm


def tell_what_gets_noise(noise: str, where: str) -> None:
    """Print which noise goes where."""
    report(f"FANoise: {noise}, on {where}")


def warn_of_row_norms(features: dict[str, Tensor], noise: dict[str, Tensor], alpha: float) -> None:
    """Warn of the first side whose rows are far from unit length."""
    for side, x in features.items():
        norm = float(row_norm(x))
        if not 0.5 <= norm <= 2:
            angle = math.degrees(math.atan(float(row_norm(noise[side])) / norm))
            rank_zero_warn(
                f"FANoise: alpha is meant for rows of unit length, but the {side} features have a root mean "
                f"square row norm of {norm:.3g}: alpha={alpha:g} turns them by {angle:.2g} degrees. Pass "
                "FANoise(relative=True), or normalise the features"
            )
            return


def warn_of_no_noise(path: str, batches: str) -> None:
    """Warn that the module was not called."""
    rank_zero_warn(
        f"FANoise added no noise in {batches}: '{path}' was not called with gradients. Name the module that "
        'is called, FANoise(target="path.to.loss")'
    )


def warn_of_no_effect(path: str) -> None:
    """Warn that nothing reads the noisy features."""
    rank_zero_warn(
        f"FANoise: no gradient came back to the noisy features of '{path}', so the noise has no effect: the "
        "loss is computed from other tensors. The log line names the features that got noise; name others, "
        'such as FANoise(target="encoder[pooler_output]", where="output"), or use what the module returns'
    )


def warn_of_clean_gradients(path: str, clean: list[str]) -> None:
    """Warn that noise goes to a teacher's features."""
    rank_zero_warn(
        f"FANoise: no argument of '{path}' that gets noise requires a gradient, and arguments that do stay "
        f"clean: `{'`, `'.join(clean)}`. Mark the features with a FeatureTap, or add noise inside the model, "
        'FANoise(target="path.to.module", where="output")'
    )


def warn_of_skipped(skipped: int, trainer: Trainer | None) -> None:
    """Warn of training batches without noise, on every rank: each rank has its own."""
    where = f" on rank {trainer.global_rank}" if trainer and trainer.world_size > 1 else ""
    warnings.warn(
        f"FANoise left {skipped} training batches without noise so far{where}: their features were not "
        "finite, empty, all zero or missing, or their decomposition did not converge. The count is logged as "
        "`fanoise/skipped_batches`.",
        stacklevel=2,
    )
