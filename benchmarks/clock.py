"""Seconds of calls on any device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["in_turns", "seconds", "synchronise"]


def synchronise(device: str | torch.device) -> None:
    """Wait until the device has done all that it was given."""
    kind = torch.device(device).type
    if kind != "cpu":
        torch.get_device_module(kind).synchronize()


def seconds(
    run: Callable[[], Any],
    device: str | torch.device = "cpu",
    timer: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one call, until its results are there."""
    synchronise(device)
    start = timer()
    run()
    synchronise(device)
    return timer() - start


def in_turns(
    sides: Sequence[Callable[[], Any]],
    rounds: int,
    device: str | torch.device = "cpu",
    timer: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """For each round the seconds of each side, in changing order, after one round to warm up.

    Args:
        sides: what to time.
        rounds: how often.
        device: where it runs.
        timer: the clock; that of the processor where other work disturbs.
    """
    times: list[list[float]] = []
    for number in range(rounds + 1):
        order = range(len(sides))[:: 1 if number % 2 else -1]
        found = {index: seconds(sides[index], device, timer) for index in order}
        times.append([found[index] for index in range(len(sides))])
    return times[1:]
