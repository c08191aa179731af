"""A question to the Hugging Face hub that is given up in time."""

from __future__ import annotations

import queue
from collections.abc import Callable
from threading import Thread

__all__ = ["WAIT", "failure_of"]

WAIT = 8.0
"""Seconds that the hub has for an answer; with retries, `huggingface_hub` takes a minute or more."""


def failure_of(request: Callable[[], object]) -> Exception | None:
    """Why a request fails, or has no answer within `WAIT` seconds; ``None`` if it is answered."""
    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            request()
        except Exception as error:  # of whichever HTTP library, or offline mode
            answers.put(error)
        else:
            answers.put(None)

    # the timeout of a request does not cover the name's look-up, and counts anew for each address
    Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=WAIT)
    except queue.Empty:
        return TimeoutError(f"no answer within {WAIT:g} s")
