"""Python code that comes with a model runs where the user asks for it, and is refused everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from fanoise_lightning.encoders._transformers import without_questions

__all__ = ["is_refused", "refuse_code", "refuse_remote_code"]

_refused: ContextVar[bool] = ContextVar("remote code refused", default=False)


@contextmanager
def refuse_remote_code() -> Iterator[None]:
    """Refuse remote code even if an encoder's arguments ask for it: here they come from a checkpoint."""
    token = _refused.set(True)
    try:
        yield
    finally:
        _refused.reset(token)


def is_refused() -> bool:
    """Whether this is inside :func:`refuse_remote_code`."""
    return _refused.get()


@contextmanager
def refuse_code(model: str) -> Iterator[None]:
    """Keep transformers from running the code in a model's folder, and from asking whether it may.

    ``trust_remote_code=False`` alone is not enough: open_clip does not pass it on to its text towers and
    tokenizers, nor does transformers to the models inside a model.

    Args:
        model: what to call the model in the error.

    Raises:
        ValueError: if something that is loaded inside the context needs such code.
    """
    try:
        with without_questions():
            yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{model} asks for `trust_remote_code`: it needs Python code from its own folder or repository "
            "(`auto_map`), which is not run for this kind of model. Choose a model that transformers loads "
            "without such code"
        ) from error
