"""The one rule of random numbers in training: a seed for each use from (run seed, rank, batch index, ...).

Lightning keeps no state of random generators in its checkpoints, and all ranks start from the same one.
Numbers that follow from where a run stands are those of an unbroken run after a resume, and differ between
ranks.
"""

from __future__ import annotations

import os

import numpy as np
import torch

__all__ = ["derive_seed", "run_seed"]


def run_seed(default: int | None = None) -> int:
    """The seed of ``seed_everything``, else `default`, else a random one."""
    if known := os.environ.get("PL_GLOBAL_SEED"):
        return int(known)
    # a generator of its own: torch.seed() would seed the global one
    return torch.Generator().seed() % 2**63 if default is None else default


def derive_seed(*key: int) -> int:
    """A seed of 64 bits from numbers >= 0; keys that differ in any number give unrelated seeds.

    Keys of one purpose must have one length: a zero at the end may count as no number.

    Example:
        >>> derive_seed(42, 0, 7) == derive_seed(42, 0, 7), derive_seed(42, 0, 7) == derive_seed(42, 1, 7)
        (True, False)
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
