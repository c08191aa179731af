"""One clear error for whatever goes wrong with the Hugging Face hub, after more tries where they may help."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from fanoise_lightning._hub import failure_of

__all__ = ["HubError", "ask_quickly", "attempt", "hub_errors"]

# Seconds before the second and the third try. `huggingface_hub` repeats most requests itself, but not the one
# for a repository's list of files, nor that for a whole file if the hub answers with a 5xx status.
WAITS = (2.0, 10.0)

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

T = TypeVar("T")
logger = logging.getLogger(__name__)


class HubError(OSError):
    """The hub could not be read. The message contains the request, what went wrong, and what to do."""


def attempt(action: Callable[[], T], what: str) -> T:
    """Ask the hub for something, and ask again if the failure may be temporary.

    Args:
        action: the request.
        what: what is asked for; error messages start with it.

    Raises:
        HubError: if the failure is permanent, or the last try fails too.
    """
    with hub_errors(what):
        for wait in WAITS:
            try:
                return action()
            except Exception as error:
                if not _is_temporary(error):
                    raise
                logger.warning("%s: %s; trying again in %g s", what, error, wait)
                time.sleep(wait)
        return action()


def ask_quickly(request: Callable[[], object], what: str) -> None:
    """Ask the hub for something small, once, to learn whether it answers.

    Args:
        request: what asks it.
        what: what is asked for; error messages start with it.

    Raises:
        HubError: if it refuses, or does not answer within 8 seconds.
    """
    with hub_errors(what):
        if (error := failure_of(request)) is not None:
            raise error


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn any error inside into a `HubError` that starts with `what` and ends with advice."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        raise HubError(_explain(error, what)) from error


def _is_temporary(error: BaseException) -> bool:
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if is_offline_mode() or _is_code(error):
        return False
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    # LocalEntryNotFoundError: the hub did not answer, and the library has waited for several minutes
    permanent = (LocalEntryNotFoundError, OfflineModeIsEnabled, ValueError, TypeError, HubError)
    errors = list(_chain(error))
    return not any(isinstance(link, permanent) or getattr(link, "errno", 0) in _DISK for link in errors)


def _is_code(error: BaseException) -> bool:
    """Whether `datasets` refuses a data set that is a script."""
    return "scripts are no longer supported" in str(error)


def _explain(error: BaseException, what: str) -> str:
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = _status(error)
    unreachable = any(isinstance(link, ConnectionError | TimeoutError) for link in _chain(error))
    url = next((found for link in _chain(error) if (found := _url(link))), None)
    offline = any(isinstance(link, OfflineModeIsEnabled) for link in _chain(error))
    if offline or (unreachable and is_offline_mode()):
        advice = "unset HF_HUB_OFFLINE, or fetch it on a machine with a network (MMEB with `fanoise data`)"
    elif _is_code(error):
        advice = "use a data set of parquet files; code of others is never run"
    elif status in (401, 403):
        advice = "log in with `hf auth login` or set HF_TOKEN, and accept the terms on the data set's page"
    elif status == 404:
        advice = "check the name; if it is right, the repository lacks the file"
    elif url or unreachable:
        advice = "try again later; the download resumes where it stopped"
    else:
        advice = "check the file, or fetch it again"
    where = f" ({url})" if url and url not in str(error) else ""
    return f"{what}: {type(error).__name__}: {error}{where}. What to do: {advice}."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: the library wraps the answer of the hub several times."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status of the hub's answer, if it answered."""
    responses = (getattr(link, "response", None) for link in _chain(error))
    return next((response.status_code for response in responses if response is not None), None)


def _url(error: BaseException) -> str | None:
    try:
        return str(error.request.url)  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):  # RuntimeError: an HTTP error without a request
        return None
