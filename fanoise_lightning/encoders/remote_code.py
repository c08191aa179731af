"""Python code that comes with a model is run where the user asks for it, and refused everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["refuse_code"]


@contextmanager
def refuse_code(model: str) -> Iterator[None]:
    """Let transformers run no code of a model's folder, and not ask at the terminal whether it may.

    ``trust_remote_code=False`` alone does not reach everything: open_clip does not pass it on to its text
    towers and tokenizers, nor does transformers to the models inside a model.

    Args:
        model: what to call the model in the error.

    Raises:
        ValueError: if something that is loaded meanwhile needs such code.
    """
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE  # how long to wait for an answer; 0: do not ask
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{model} asks for `trust_remote_code`: it needs Python code from its own folder or repository "
            "(`auto_map`), which is not run for this kind of model. Take one that transformers reads without"
        ) from error
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before
