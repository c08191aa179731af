"""One clear error for whatever goes wrong with the Hugging Face hub, after more tries where they may help."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["HubError", "attempt", "hub_errors"]

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
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    # LocalEntryNotFoundError: the hub did not answer, and the library has waited for several minutes
    permanent = (LocalEntryNotFoundError, OfflineModeIsEnabled, ValueError, TypeError, HubError)
    errors = list(_chain(error))
    return not any(isinstance(link, permanent) or getattr(link, "errno", 0) in _DISK for link in errors)


def _explain(error: BaseException, what: str) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = _status(error)
    url = next((found for link in _chain(error) if (found := _url(link))), None)
    if any(isinstance(link, OfflineModeIsEnabled) for link in _chain(error)):
        advice = "unset HF_HUB_OFFLINE, or run `fanoise data` on a machine with a network"
    elif status in (401, 403):
        advice = "log in with `hf auth login` or set HF_TOKEN, and accept the terms on the data set's page"
    elif status == 404:
        advice = "check the name; if it is right, the repository lacks the file"
    elif url or any(isinstance(link, ConnectionError) for link in _chain(error)):
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
