from __future__ import annotations

import warnings

import pytest

from fanoise_lightning.data.batches.skipped import SkipLog, TooManySkippedError


def test_the_first_skip_is_reported_at_once_the_rest_at_the_end() -> None:
    log = SkipLog("training rows", 1000, 0.01)
    with pytest.warns(UserWarning, match=r"is skipped: a\.png"):
        log.add(["a.png", "b.png"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.add(["a.png"])
    with pytest.warns(UserWarning, match=r"epoch 0: skipped 3 times, 2 of 1000 training rows so far"):
        log.report("epoch 0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.report("epoch 1")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_row_counts_once_against_the_limit() -> None:
    log = SkipLog("training rows", 200, 0.01)
    log.add(["a.png", "b.png"])
    log.add(["a.png", "b.png"])
    with pytest.raises(
        TooManySkippedError, match=r"3 training rows.*allows 2(?s:.*)a\.png\n  b\.png\n  c\.png"
    ):
        log.add(["c.png"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_limit_of_zero_stops_at_the_first() -> None:
    with pytest.raises(TooManySkippedError, match="1 sides"):
        SkipLog("sides", 200, 0.0).add(["a.png"])
