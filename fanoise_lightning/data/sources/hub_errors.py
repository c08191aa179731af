"""Patience with the Hugging Face hub, and its end: what may pass is tried again, what does not pass becomes
one clear error, and no request waits without a limit.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["HubError", "attempt", "hub_errors"]

WAITS = (2.0, 10.0)  # seconds before the second and the third attempt, on top of the libraries' own

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

T = TypeVar("T")
logger = logging.getLogger(__name__)
_LOCK = threading.Lock()


class HubError(OSError):
    """A repository that cannot be read: what was asked for, what went wrong, and what to do."""


def attempt(action: Callable[[], T], what: str) -> T:
    """Do something with the hub, again after a while if it fails in a way that may pass.

    Raises:
        HubError: if it does not pass, with `what` and advice.
    """
    for wait in WAITS:
        try:
            with _limited_waiting():
                return action()
        except Exception as error:
            if not _may_pass(error):
                raise HubError(_explain(error, what)) from error
            logger.warning("%s: %s; another attempt in %g s", what, error, wait)
            time.sleep(wait)
    with hub_errors(what):
        return action()


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what the libraries raise about the hub into a `HubError` that names `what` and gives advice."""
    try:
        with _limited_waiting():
            yield
    except HubError:
        raise
    except Exception as error:
        raise HubError(_explain(error, what)) from error


@contextmanager
def _limited_waiting() -> Iterator[None]:
    """Let no request meanwhile wait longer than HF_HUB_DOWNLOAD_TIMEOUT seconds for a byte (10 by default).

    `huggingface_hub` lists files without a limit: a hub that takes the request and stays silent would hang
    the run for ever. Its client is that of the whole process: it is left as it was found.
    """
    from huggingface_hub.utils import get_session

    session = get_session()  # another one after a fork, or after a connection failed
    with _LOCK:
        session.event_hooks = _with_requests(session, [*session.event_hooks["request"], _set_timeout])
    try:
        yield
    finally:
        with _LOCK:
            requests = list(session.event_hooks["request"])
            if _set_timeout in requests:  # of several threads each takes away one
                requests.remove(_set_timeout)
            session.event_hooks = _with_requests(session, requests)


def _with_requests(session: Any, hooks: list[Any]) -> dict[str, list[Any]]:
    return {**session.event_hooks, "request": hooks}


def _set_timeout(request: Any) -> None:
    from huggingface_hub import constants

    limit = constants.HF_HUB_DOWNLOAD_TIMEOUT
    asked = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        name: min(asked.get(name) or limit, limit) for name in ("connect", "read", "write", "pool")
    }


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: BaseException) -> int | None:
    responses = (getattr(link, "response", None) for link in _chain(error))
    return next((response.status_code for response in responses if response is not None), None)


def _may_pass(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    final = (OfflineModeIsEnabled, ValueError, TypeError, HubError)
    return not any(isinstance(link, final) or getattr(link, "errno", 0) in _DISK for link in _chain(error))


def _explain(error: BaseException, what: str) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = _status(error)
    url = next((found for link in _chain(error) if (found := _url(link))), None)
    if any(isinstance(link, OfflineModeIsEnabled) for link in _chain(error)):
        advice = "unset HF_HUB_OFFLINE, or fetch the data with `fanoise data` where there is a network"
    elif status in (401, 403):
        advice = "log in with `hf auth login` or set HF_TOKEN, and accept the terms on the data set's page"
    elif status == 404:
        advice = "check the name; if that is right, the repository lacks the file"
    elif url or any(isinstance(link, ConnectionError) for link in _chain(error)):
        advice = "try again later: what has come is kept, and the download goes on from there"
    else:
        advice = "check the file, or fetch it again"
    where = f" ({url})" if url and url not in str(error) else ""
    return f"{what}: {type(error).__name__}: {error}{where}. What to do: {advice}."


def _url(error: BaseException) -> str | None:
    try:
        return str(error.request.url)  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):  # RuntimeError: httpx's, where no request was set
        return None
