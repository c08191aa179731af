from __future__ import annotations

import pytest

from fanoise_lightning.evaluation.intervals import wilson_interval


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rounding_does_not_carry_a_limit_of_a_proportion_beyond_0_and_1(share: float) -> None:
    limits = [limit for queries in range(1, 200) for limit in wilson_interval(share, queries)]
    assert min(limits) >= 0
    assert max(limits) <= 1
