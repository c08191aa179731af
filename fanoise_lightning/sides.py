"""Which side of a batch is being embedded: what a callback inside the encoder cannot see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["current_side", "embedding_side"]

_SIDE: ContextVar[str | None] = ContextVar("side", default=None)


@contextmanager
def embedding_side(side: str) -> Iterator[None]:
    """Mark what runs inside as the embedding of ``"query"`` or ``"target"``."""
    token = _SIDE.set(side)
    try:
        yield
    finally:
        _SIDE.reset(token)


def current_side() -> str | None:
    """The side that is being embedded; ``None`` outside of :func:`embedding_side`.

    Example:
        >>> with embedding_side("query"):
        ...     current_side()
        'query'
    """
    return _SIDE.get()
