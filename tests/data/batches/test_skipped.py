from __future__ import annotations

import warnings

import pytest

from fanoise_lightning.data.batches.skipped import SkipLimit, SkipLog, SkipReports, TooManySkippedError


def test_the_first_skip_is_reported_at_once_the_rest_at_the_end() -> None:
    log = SkipLog(SkipLimit("training rows", 10), 1000)
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
    log = SkipLog(SkipLimit("training rows", 2), 200)
    log.add(["a.png", "b.png"])
    log.add(["a.png", "b.png"])
    with pytest.raises(
        TooManySkippedError, match=r"3 training rows.*allows 2(?s:.*)a\.png\n  b\.png\n  c\.png"
    ):
        log.add(["c.png"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_limit_of_zero_stops_at_the_first() -> None:
    with pytest.raises(TooManySkippedError, match="1 evaluation items"):
        SkipLog(SkipLimit("evaluation items", 0), 200).add(["a.png"])


def test_a_share_of_a_subset_is_rounded_up() -> None:
    limit = SkipLimit.of_share("training rows", {"s": 60, "t": 100_000}, 0.01)
    assert (limit.total, limit.of_subset) == (1000, {"s": 1, "t": 1000})


def test_a_pass_is_reported_when_another_begins() -> None:
    reports = SkipReports(1.0)
    for loader in ("train", "eval"):
        reports.start_log(loader, f"{loader} rows", {"s": 10})
    with pytest.warns(UserWarning, match=r"is skipped: a\.png"):
        reports.add("train", "epoch 0", ["a.png"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports.add("train", "epoch 0", ["a.png"])
    with pytest.warns(UserWarning, match=r"epoch 0: skipped 2 times, 1 of 10 train rows"):
        reports.add("eval", "epoch 0", [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing was skipped in the last pass
        reports.report()
