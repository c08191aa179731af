"""The rule for random numbers in training: each use derives a seed from (run seed, rank, batch index, ...).

Lightning's checkpoints hold no state of random number generators, and all ranks start from the same state.
Numbers derived from a run's position are those of an uninterrupted run after a resume, and differ between
ranks.
"""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import torch

__all__ = ["derive_seed", "run_seed", "seed_generators"]


def run_seed(default: int | None = None) -> int:
    """The seed of ``seed_everything``, else `default`, else a random one."""
    if known := os.environ.get("PL_GLOBAL_SEED"):
        return int(known)
    # an own generator: torch.seed() would seed the global one
    return torch.Generator().seed() % 2**63 if default is None else default


def derive_seed(*key: int) -> int:
    """A 64-bit seed from integers >= 0; keys that differ in any integer give unrelated seeds.

    All keys for one purpose must have the same length: a trailing zero may not count.

    Example:
        >>> derive_seed(42, 0, 7) == derive_seed(42, 0, 7), derive_seed(42, 0, 7) == derive_seed(42, 1, 7)
        (True, False)
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def seed_generators(seed: int) -> None:
    """Seed torch's global generators of every device, as :func:`torch.manual_seed` does.

    Those of an accelerator are set on the host, nothing waits for it. Where there is none, ``manual_seed``
    would write down the stack for each kind of accelerator, which is slow to do at every step.
    """
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()
